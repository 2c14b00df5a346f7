//! The status page: what `warren status` says, for a browser. No scripts, nothing loaded.

use gossip::record::MemberState;

use crate::agent::Snapshot;
use crate::api::Status;

const STYLE: &str = "body{font:15px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;\
color:#1c2430;background:#fff}table{border-collapse:collapse;width:100%;margin:1rem 0}th,td{text-align:left;\
padding:.3rem .8rem .3rem 0;border-bottom:1px solid #dde3ea}code{font:13px ui-monospace,monospace}\
.ok{color:#12733c}.bad{color:#a3221c}@media(prefers-color-scheme:dark){body{color:#d8dee6;background:#12161c}\
th,td{border-color:#2b333d}.ok{color:#5fcf8d}.bad{color:#ff8a80}}";

/// The page.
pub fn render(status: &Status, snapshot: &Snapshot) -> String {
    let (class, word) = if status.ready { ("ok", "ready") } else { ("bad", "not ready") };
    let problems: String =
        status.problems.iter().map(|p| format!("<li class=bad>{}</li>", escape(p))).collect();
    let hosts: String = snapshot
        .view
        .hosts
        .iter()
        .map(|(host, h)| {
            let members = h.records.members.values().filter(|m| m.state != MemberState::Released).count();
            let class = if h.standing.answers() { "ok" } else { "bad" };
            format!(
                "<tr><td>{}</td><td class={class}>{}{}</td><td><code>{}</code></td><td>{members}</td></tr>",
                escape(host.as_str()),
                h.standing.as_str(),
                if h.records.host.draining { ", draining" } else { "" },
                h.address,
            )
        })
        .collect();
    let members: String = snapshot
        .view
        .members()
        .filter(|(.., record)| record.state != MemberState::Released)
        .map(|(host, _, network, _, record)| {
            let ordinal = record.ordinal.map(|n| format!("{n}.")).unwrap_or_default();
            format!(
                "<tr><td><code>{ordinal}{}.{}</code></td><td><code>{network}</code></td><td><code>{}</code></td><td>{}</td></tr>",
                record.process,
                record.app,
                record.address,
                escape(host.as_str()),
            )
        })
        .collect();
    format!(
        "<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content=\"width=device-width\">\
         <title>warren {host}</title><style>{STYLE}</style>\
         <h1>warren on {host}</h1><p>Region {region}, version {version}: <b class={class}>{word}</b>.</p>\
         <ul>{problems}</ul>\
         <h2>Hosts</h2><table><tr><th>host<th>standing<th>gossips at<th>members</tr>{hosts}</table>\
         <h2>Members</h2><table><tr><th>member<th>network<th>address<th>host</tr>{members}</table>\
         <p><a href=/metrics>metrics</a></p></html>",
        host = escape(status.host.as_str()),
        region = escape(&status.region),
        version = status.version,
    )
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_cannot_become_markup() {
        assert_eq!(escape("<b a=\"&\">"), "&lt;b a=&quot;&amp;&quot;&gt;");
    }
}
