//! What the API says of itself: OpenAPI 3.1, of the same routes that are served.

use std::fmt;

use aide::axum::ApiRouter;
use aide::generate::in_context;
use aide::openapi::{
    Components, Info, License, MediaType, OpenApi, Operation, PathItem, ReferenceOr, Response, SchemaObject,
    Server,
};
use aide::transform::TransformOperation;
use axum::Json;
use axum::http::StatusCode;
use netplumb::Kernel;
use schemars::JsonSchema;
use schemars::generate::SchemaSettings;
use serde::Serialize;

use super::problem::{self, Problem};
use super::routes;
use crate::attach::RefusalKind;
use crate::store::Store;

/// The document.
#[derive(Debug, Serialize, JsonSchema)]
#[serde(transparent)]
pub struct Description(#[schemars(with = "serde_json::Map<String, serde_json::Value>")] OpenApi);

impl fmt::Display for Description {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&serde_json::to_string_pretty(self).map_err(|_| fmt::Error)?)
    }
}

/// Describes both listeners.
pub(crate) fn describe<K: Kernel, S: Store + Clone>() -> Description {
    let mut api = described(routes::private::<K, S>);
    let public = described(routes::public::<K, S>);
    api.info = Info {
        title: "warren".into(),
        description: Some(
            "One agent's API: HTTP and JSON on its Unix socket. Whatever is refused is answered with a problem (RFC \
             9457) that says what happened and what to do about it."
                .into(),
        ),
        license: Some(License { name: "Apache-2.0".into(), identifier: Some("Apache-2.0".into()), ..License::default() }),
        version: env!("CARGO_PKG_VERSION").into(),
        ..Info::default()
    };
    let server = |url: &str, what: &str| Server {
        url: url.into(),
        description: Some(what.into()),
        ..Server::default()
    };
    let socket = server("http://warren", "the Unix socket, /run/warren/warren.sock: `curl --unix-socket`");
    let tcp = server("http://127.0.0.1:9479", "read only, at `http.listen`");
    api.servers = vec![socket.clone()];
    let paths = &mut api.paths.get_or_insert_default().paths;
    for (path, item) in public.paths.into_iter().flat_map(|public| public.paths) {
        let on_both = paths.contains_key(&path);
        let servers = on_both.then(|| socket.clone()).into_iter().chain([tcp.clone()]).collect();
        let item = item.into_item().unwrap_or_default();
        paths.insert(path, ReferenceOr::Item(PathItem { servers, ..item }));
    }
    Description(api)
}

/// What `routes` say of themselves.
fn described<T: Clone + Send + Sync + 'static>(routes: fn() -> ApiRouter<T>) -> OpenApi {
    // aide collects schemas beside the routes, for whichever thread makes them.
    let json_schema = in_context(|context| {
        context.schema = settings().for_serialize().into_generator();
        context.schema.subschema_for::<Problem>()
    });
    let problem = MediaType {
        schema: Some(SchemaObject { json_schema, example: None, external_docs: None }),
        ..MediaType::default()
    };
    let responses = problem::statuses().map(|(status, what)| {
        let content = [(problem::JSON.to_owned(), problem.clone())].into_iter().collect();
        let response = Response { description: what.into(), content, ..Response::default() };
        (status.as_str().to_owned(), ReferenceOr::Item(response))
    });
    let mut api = OpenApi {
        components: Some(Components { responses: responses.into(), ..Components::default() }),
        ..OpenApi::default()
    };
    let _ = routes().finish_api(&mut api);
    api
}

pub(super) async fn serve<K: Kernel, S: Store + Clone>() -> Json<Description> {
    Json(describe::<K, S>())
}

/// JSON Schema as OpenAPI 3.1 has it.
pub(super) fn settings() -> SchemaSettings {
    SchemaSettings::draft2020_12().with(|settings| settings.definitions_path = "/components/schemas".into())
}

/// Says that an operation may be answered with a problem of this status.
pub(super) fn refuses(operation: &mut Operation, status: StatusCode) {
    answers(operation, status, ReferenceOr::ref_(&format!("#/components/responses/{}", status.as_str())));
}

/// What types do not say of an operation: its name, what it does, and how it may be refused.
pub(super) fn said(
    id: &str,
    what: &str,
    refusals: &[RefusalKind],
) -> impl FnOnce(TransformOperation<'_>) -> TransformOperation<'_> {
    move |mut operation| {
        for kind in refusals {
            refuses(operation.inner_mut(), problem::status(*kind));
        }
        let responses = &mut operation.inner_mut().responses.get_or_insert_default().responses;
        responses.sort_unstable_keys();
        // A list has no description of its own.
        let plain = responses.values_mut().filter_map(ReferenceOr::as_item_mut);
        plain
            .filter(|response| response.description.is_empty())
            .for_each(|response| response.description = what.into());
        operation.id(id).description(what)
    }
}

/// Says that an operation's body may be left out.
pub(super) fn bodiless_too(mut operation: TransformOperation<'_>) -> TransformOperation<'_> {
    if let Some(ReferenceOr::Item(body)) = &mut operation.inner_mut().request_body {
        body.required = false;
    }
    operation
}

/// Says that an operation may be answered with text, of this kind and meaning.
pub(super) fn text<'o>(
    mut operation: TransformOperation<'o>,
    status: StatusCode,
    kind: &str,
    what: &str,
) -> TransformOperation<'o> {
    let content = [(kind.to_owned(), MediaType::default())].into_iter().collect();
    let response = Response { description: what.into(), content, ..Response::default() };
    answers(operation.inner_mut(), status, ReferenceOr::Item(response));
    operation
}

fn answers(operation: &mut Operation, status: StatusCode, response: ReferenceOr<Response>) {
    let responses = &mut operation.responses.get_or_insert_default().responses;
    responses.insert(aide::openapi::StatusCode::Code(status.as_u16()), response);
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use netplumb::NetlinkKernel;
    use roas::v3_1::spec::Spec;
    use roas::validation::{Options, Validate as _};

    use super::*;
    use crate::store::DirStore;

    #[test]
    fn the_copy_in_the_repository_is_what_the_routes_say() {
        let now = describe::<NetlinkKernel, DirStore>().to_string();
        assert!(
            include_str!("../../docs/openapi.json").trim_end() == now,
            "the API has changed: `cargo run --bin warren openapi > node/docs/openapi.json` renews its description"
        );
    }

    #[test]
    fn it_is_openapi_and_nothing_is_left_unsaid() {
        let Description(api) = describe::<NetlinkKernel, DirStore>();
        let text = serde_json::to_string(&api).unwrap();
        // OpenAPI's registry of formats has unsigned ones, roas does not.
        let text = ["", "8", "16", "32", "64"].into_iter().fold(text, |text, bits| {
            text.replace(&format!("\"format\":\"uint{bits}\""), "\"format\":\"int64\"")
        });
        let spec: Spec = serde_json::from_str(&text).unwrap();
        if let Err(wrong) = spec.validate(Options::new(), None) {
            panic!("{wrong}");
        }
        let mut ids = BTreeSet::new();
        for (path, method, operation) in api.operations() {
            let id = operation.operation_id.clone().unwrap_or_default();
            assert!(!id.is_empty() && ids.insert(id.clone()), "{method} {path}: its name {id:?}");
            assert!(
                operation.description.as_ref().is_some_and(|what| !what.is_empty()),
                "{id}: what it does"
            );
            let responses = &operation.responses.as_ref().expect("responses").responses;
            let good =
                responses.keys().filter(|status| matches!(status, aide::openapi::StatusCode::Code(200..300)));
            assert_eq!(good.count(), 1, "{id}: how it is answered");
            for parameter in operation.parameters.iter().filter_map(ReferenceOr::as_item) {
                let parameter = parameter.parameter_data_ref();
                assert!(parameter.description.is_some(), "{id}: what {} is", parameter.name);
            }
        }
    }
}
