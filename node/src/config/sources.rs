//! Where a key may stand, and what is said of one that makes no sense.

use anyhow::Context as _;

/// Every key by its dotted name; `WARREN_` with dots as underscores is its environment variable.
const KEYS: &[&str] = &[
    "region",
    "host",
    "state_dir",
    "run_dir",
    "gossip.listen",
    "gossip.advertise",
    "gossip.seeds",
    "gossip.interval_ms",
    "tls.ca",
    "tls.cert",
    "tls.key",
    "underlay.address",
    "underlay.vxlan_port",
    "dns.zone",
    "dns.ttl_s",
    "dns.listen",
    "dns.upstreams",
    "dns.forward",
    "docker.plugin",
    "docker.socket",
    "watch.sockets",
    "cdi.file",
    "http.listen",
    "wireguard.backend",
    "wireguard.threads",
    "unguarded",
];

pub(super) fn key_of_variable(rest: &str) -> Option<&'static str> {
    KEYS.iter().find(|key| key.replace('.', "_").to_uppercase() == rest).copied()
}

/// Puts a value given as text under a dotted key: TOML where it parses, a list where the key is
/// one, else a string.
pub(super) fn set(table: &mut toml::Table, key: &str, text: &str) -> anyhow::Result<()> {
    let value = match text.parse::<toml::Value>() {
        Ok(value) => value,
        Err(_) if ["seeds", "upstreams", "sockets"].iter().any(|list| key.ends_with(list)) => {
            toml::Value::Array(
                text.split(',')
                    .map(|s| s.trim().to_owned())
                    .filter(|s| !s.is_empty())
                    .map(toml::Value::String)
                    .collect(),
            )
        }
        Err(_) => toml::Value::String(text.to_owned()),
    };
    let mut place = table;
    let mut parts: Vec<&str> = key.split('.').collect();
    let last = parts.pop().unwrap_or(key);
    for part in parts {
        place = place
            .entry(part)
            .or_insert_with(|| toml::Value::Table(toml::Table::new()))
            .as_table_mut()
            .with_context(|| format!("`{part}` is not a section"))?;
    }
    place.insert(last.to_owned(), value);
    Ok(())
}

/// serde's message with the key and the value it is about; an unknown key with the likeliest meant.
pub(super) fn explain(error: &toml::de::Error, table: &toml::Table) -> String {
    let message = explain_unknown(error.message());
    let text = error.to_string();
    let Some(key) = text.lines().find_map(|line| line.strip_prefix("in `")?.strip_suffix('`')) else {
        return message;
    };
    let mut parts = key.split('.');
    let first = parts.next().and_then(|part| table.get(part));
    match parts.try_fold(first, |value, part| Some(value?.get(part))).flatten() {
        Some(value) if !value.is_table() => format!("{key} is {value}: {message}"),
        _ => format!("{key}: {message}"),
    }
}

/// serde's "unknown field `x`, expected one of `a`, `b`" with the likeliest meant.
fn explain_unknown(message: &str) -> String {
    let mut quoted = message.split('`').skip(1).step_by(2);
    let meant = message
        .starts_with("unknown field")
        .then(|| {
            let unknown = quoted.next()?;
            quoted
                .map(|known| (strsim::damerau_levenshtein(unknown, known), known))
                .filter(|(distance, _)| *distance <= 3)
                .min()
        })
        .flatten();
    match meant {
        Some((_, known)) => format!("{message}; did you mean `{known}`?"),
        None => message.to_owned(),
    }
}
