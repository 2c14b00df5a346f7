//! What a container's labels say of the member it shall be. Pure.

use std::collections::BTreeMap;

use crate::attach::{Naming, Refusal, RefusalKind};

/// Compose's number of a container within its service.
const COMPOSE_NUMBER: &str = "com.docker.compose.container-number";

/// Reads the labels of the container called `name`.
///
/// # Errors
/// No app, or a label that cannot be read.
pub(in crate::runtime) fn naming(name: &str, labels: &BTreeMap<String, String>) -> Result<Naming, Refusal> {
    let label = |key: &str| labels.get(&format!("warren.{key}")).map(String::as_str);
    let unread = |key: &str, error: &dyn std::fmt::Display| {
        Refusal::new(RefusalKind::Malformed, format!("label warren.{key} of container {name}: {error}"))
    };
    let app = label("app").ok_or_else(|| {
        Refusal::new(RefusalKind::Malformed, format!("container {name} does not say which app it runs"))
            .hint("add --label warren.app=ap-<uuid>")
    })?;
    let ordinal = label("ordinal").map(|n| n.parse().map_err(|e| unread("ordinal", &e))).transpose()?;
    let of_compose = || labels.get(COMPOSE_NUMBER).and_then(|n| n.parse().ok()).filter(|n| *n > 0);
    let ports = label("publish").unwrap_or_default().split(',').map(str::trim).filter(|p| !p.is_empty());
    Ok(Naming {
        container: name.to_owned(),
        app: app.parse().map_err(|e| unread("app", &e))?,
        process: label("type").unwrap_or("web").parse().map_err(|e| unread("type", &e))?,
        ordinal: ordinal.or_else(of_compose),
        insists: ordinal.is_some(),
        ports: ports.map(|p| p.parse().map_err(|e| unread("publish", &e))).collect::<Result<_, _>>()?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const APP: &str = "ap-a71da13f-7c70-4c00-a644-eee8558d8053";

    fn of(labels: &[(&str, &str)]) -> Result<Naming, Refusal> {
        naming("c", &labels.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect())
    }

    #[test]
    fn labels_are_read() {
        let app = ("warren.app", APP);
        let bare = of(&[app]).unwrap();
        assert_eq!(
            (bare.process.as_str(), bare.ordinal, bare.insists, bare.ports.len()),
            ("web", None, false, 0)
        );
        let full = [
            app,
            ("warren.type", "worker"),
            ("warren.ordinal", "3"),
            ("warren.publish", "tcp/3000:http, udp/53"),
            (COMPOSE_NUMBER, "2"),
        ];
        let full = of(&full).unwrap();
        assert_eq!(
            (full.process.as_str(), full.ordinal, full.insists, full.ports.len()),
            ("worker", Some(3), true, 2)
        );
        let compose = of(&[app, (COMPOSE_NUMBER, "2")]).unwrap();
        assert_eq!(
            (compose.ordinal, compose.insists),
            (Some(2), false),
            "other hosts count from one as well"
        );
    }

    #[test]
    fn labels_that_cannot_be_read_are_named() {
        let app = ("warren.app", APP);
        for (labels, says) in [
            (vec![], "does not say which app"),
            (vec![("warren.app", "shop")], "warren.app of container c"),
            (vec![app, ("warren.type", "Web!")], "warren.type"),
            (vec![app, ("warren.ordinal", "first")], "warren.ordinal"),
            (vec![app, ("warren.publish", "3000")], "warren.publish"),
        ] {
            let refusal = of(&labels).unwrap_err();
            assert!(refusal.detail.contains(says), "{labels:?}: {refusal}");
        }
    }
}
