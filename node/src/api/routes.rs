//! Every route, with what its types do not say of it: what is not described here is not served.

use aide::axum::ApiRouter;
use aide::axum::routing::{get_with, post_with};
use aide::transform::TransformOperation;
use axum::http::StatusCode;
use netplumb::Kernel;

use super::Served;
use super::description::{self, bodiless_too, said, text};
use super::drain::drain;
use super::explain::{doctor, explain, ping};
use super::member::{attach, detach, member};
use super::network::{change, create, forget, inspect};
use super::public::{OPENMETRICS, health, metrics, page, ready};
use super::reset::reset;
use super::rows::{events, hosts, look_up, members, names, networks, status};
use super::traffic::traffic;
use crate::attach::RefusalKind::{Conflict, Denied, Failed, NotFound, Timeout, Unready};
use crate::store::Store;

/// What axum writes text in.
const PLAIN: &str = "text/plain; charset=utf-8";

/// On the Unix socket.
pub(super) fn private<K: Kernel, S: Store + Clone>() -> ApiRouter<Served<K, S>> {
    own_members::<K, S>()
        .merge(of_networks::<K, S>())
        .merge(of_region::<K, S>())
        .merge(of_host::<K, S>())
        .api_route("/metrics", get_with(metrics::<K, S>, figures))
        .api_route(
            "/v1/openapi.json",
            get_with(description::serve::<K, S>, said("openapi", "This description.", &[])),
        )
}

fn own_members<K: Kernel, S: Store + Clone>() -> ApiRouter<Served<K, S>> {
    ApiRouter::new().api_route(
        "/v1/networks/{network}/members/{id}",
        get_with(
            member::<K, S>,
            said("member", "A member of this host, as its attach was answered.", &[NotFound]),
        )
        .put_with(
            attach::<K, S>,
            said(
                "attach",
                "Attaches a container: answered when it is built on this host and the others have it, or `wait_ms` \
                 later. One that is a member already is answered as it is.",
                &[NotFound, Conflict, Denied, Unready, Timeout, Failed],
            ),
        )
        .delete_with(
            detach::<K, S>,
            said("detach", "Detaches a container. What is no member is detached.", &[Unready, Failed]),
        ),
    )
}

fn of_networks<K: Kernel, S: Store + Clone>() -> ApiRouter<Served<K, S>> {
    ApiRouter::new()
        .api_route("/v1/networks", get_with(networks::<K, S>, said("networks", "The region's networks.", &[])))
        .api_route(
            "/v1/networks/{network}",
            get_with(inspect::<K, S>, said("network", "All about a network.", &[NotFound]))
                .put_with(
                    create::<K, S>,
                    said(
                        "createNetwork",
                        "Makes a network before its first container. One that is there with the same subnet is as good.",
                        &[Conflict, Unready, Timeout, Failed],
                    ),
                )
                .patch_with(
                    change::<K, S>,
                    said(
                        "changeNetwork",
                        "Changes a network that was made here or has members here.",
                        &[NotFound, Unready, Failed],
                    ),
                )
                .delete_with(
                    forget::<K, S>,
                    said(
                        "forgetNetwork",
                        "Forgets a network that was made here and has no members. What is not there is forgotten.",
                        &[NotFound, Conflict, Unready, Failed],
                    ),
                ),
        )
}

fn of_region<K: Kernel, S: Store + Clone>() -> ApiRouter<Served<K, S>> {
    ApiRouter::new()
        .api_route("/v1/hosts", get_with(hosts::<K, S>, said("hosts", "The region's hosts.", &[])))
        .api_route("/v1/members", get_with(members::<K, S>, said("members", "The region's members.", &[])))
        .api_route(
            "/v1/names",
            get_with(names::<K, S>, said("names", "The names of the networks that have members here.", &[])),
        )
        .api_route(
            "/v1/lookup",
            get_with(
                look_up::<K, S>,
                said("lookup", "What a container would be answered.", &[NotFound, Failed]),
            ),
        )
        .api_route(
            "/v1/explain",
            get_with(
                explain::<K, S>,
                said(
                    "explain",
                    "The way from one container to another, step by step on both hosts.",
                    &[NotFound],
                ),
            ),
        )
        .api_route(
            "/v1/ping",
            get_with(
                ping::<K, S>,
                said("ping", "One echo from a container of this host to another.", &[NotFound]),
            ),
        )
}

fn of_host<K: Kernel, S: Store + Clone>() -> ApiRouter<Served<K, S>> {
    ApiRouter::new()
        .api_route("/v1/status", get_with(status::<K, S>, said("status", "How the agent and its region are.", &[])))
        .api_route(
            "/v1/events",
            get_with(events::<K, S>, said("events", "What happened lately, oldest first.", &[])),
        )
        .api_route(
            "/v1/traffic",
            get_with(
                traffic::<K, S>,
                said("traffic", "What this host's members have exchanged so far: two looks make a rate.", &[]),
            ),
        )
        .api_route(
            "/v1/doctor",
            get_with(
                doctor::<K, S>,
                said("doctor", "What the kernel here lacks, and how each other host's clock and the way to it are.", &[]),
            ),
        )
        .api_route(
            "/v1/drain",
            post_with(drain::<K, S>, |operation| {
                let what = "Has this host take no new members, and names lead to those it has no more; or takes that back.";
                bodiless_too(said("drain", what, &[Unready, Failed])(operation))
            }),
        )
        .api_route(
            "/v1/reset",
            post_with(
                reset::<K, S>,
                said(
                    "reset",
                    "Detaches all of this host's members: answered when nothing of them is left. The agent goes on.",
                    &[Conflict, Unready, Timeout, Failed],
                ),
            ),
        )
}

/// On TCP, to be read by anybody.
pub(super) fn public<K: Kernel, S: Store + Clone>() -> ApiRouter<Served<K, S>> {
    ApiRouter::new()
        .api_route("/metrics", get_with(metrics::<K, S>, figures))
        .api_route(
            "/healthz",
            get_with(health::<K, S>, |operation| {
                let operation = said("health", "Whether the agent's loop answers.", &[])(operation);
                let operation = text(operation, StatusCode::OK, PLAIN, "It does.");
                text(operation, StatusCode::SERVICE_UNAVAILABLE, PLAIN, "It has not in 5 s.")
            }),
        )
        .api_route(
            "/readyz",
            get_with(ready::<K, S>, |operation| {
                let operation =
                    said("ready", "Whether the agent is in its region and knows it whole.", &[])(operation);
                let operation = text(operation, StatusCode::OK, PLAIN, "It is.");
                text(operation, StatusCode::SERVICE_UNAVAILABLE, PLAIN, "Not yet, or no more, and why.")
            }),
        )
        .api_route(
            "/",
            get_with(page::<K, S>, |operation| {
                let operation = said("page", "The agent and its region, to look at.", &[])(operation);
                text(operation, StatusCode::OK, "text/html; charset=utf-8", "The status page.")
            }),
        )
}

fn figures(operation: TransformOperation<'_>) -> TransformOperation<'_> {
    let operation = said("metrics", "What the agent counts.", &[Failed])(operation);
    text(operation, StatusCode::OK, OPENMETRICS, "OpenMetrics.")
}
