//! The page on convergence: curves beside the peer's, deaths, silence, and what it costs.

use serde_json::Value;

use super::perturbation::{self, Perturbation};
use super::sample::percentile;
use super::targets::Measured;
use super::{Campaign, MODELS, Model, is_faster, peer_row};
use crate::report::chart::{Axis, Chart, Look, Scale, Series};
use crate::report::{Page, human_bytes, human_ms};

/// The number of hosts that the curves are of.
const HOSTS: usize = 25;

const SHARE: Axis = Axis { label: "% of runs", scale: Scale::Linear, number: |share| format!("{share:.0}") };
const TIME: Axis =
    Axis { label: "until the last host shows it (logarithmic)", scale: Scale::Log, number: human_ms };

/// The page of a campaign, and of the regions that were measured beside it.
///
/// # Errors
/// The peer's file.
pub fn page(campaign: &Campaign, regions: &[Measured], command: &str) -> anyhow::Result<Page> {
    let mut page = Page::new("How fast news reaches every host", command);
    let taken: Vec<Perturbation> = perturbation::ALL.into_iter().filter(|p| campaign.has(*p)).collect();
    page.headlines(&headlines(campaign, &taken, regions)?);
    page.section(
        "A change of a region of 25 hosts",
        "Each curve: the share of runs in which every host showed the change by then; further left is faster. All in \
         virtual time. NetworkDB measured itself over links without delay; ours is drawn over such links and over \
         links of 0.3 to 1.5 ms. “chitchat alone” is ours with the frames switched off. Times below 1 ms are drawn \
         at 1 ms.",
    );
    page.charts(taken.iter().map(|what| curves(campaign, *what)).collect::<anyhow::Result<Vec<_>>>()?);
    page.section(
        "From 2 to 25 hosts",
        "The 90th percentile of the runs. NetworkDB's gossip goes round by round, so it grows with the number of \
         rounds; a frame reaches everybody in two or three hops.",
    );
    page.charts(
        taken
            .iter()
            .filter(|what| what.sizes().len() > 3)
            .map(|what| growth(campaign, *what))
            .collect::<anyhow::Result<Vec<_>>>()?,
    );
    rows(&mut page, campaign, &taken)?;
    if !regions.is_empty() {
        large(&mut page, regions);
    }
    Ok(page)
}

fn headlines(
    campaign: &Campaign,
    taken: &[Perturbation],
    regions: &[Measured],
) -> anyhow::Result<Vec<(String, String)>> {
    let mut told = Vec::new();
    for &what in taken
        .iter()
        .filter(|what| matches!(what, Perturbation::CreateEntry | Perturbation::CreateEntryUnderChurn))
    {
        let [ours, metro] =
            [MODELS[0], MODELS[1]].map(|model| percentile(&campaign.row(what, HOSTS, model), 90));
        let peer = percentile(&peer_row(what, HOSTS)?, 90);
        let text = format!(
            "{}, 25 hosts, 90 % of runs; {} over links of 0.3–1.5 ms; NetworkDB {}",
            what.name(),
            human_ms(metro),
            human_ms(peer)
        );
        told.push((human_ms(ours), text));
    }
    let (mut faster, mut all) = (0, 0);
    for &what in taken {
        for &nodes in what.sizes() {
            all += 1;
            faster += usize::from(is_faster(&campaign.row(what, nodes, MODELS[0]), &peer_row(what, nodes)?));
        }
    }
    told.push((
        format!("{faster} of {all}"),
        "rows below NetworkDB's at p50, p90 and max, or both at 0".into(),
    ));
    if let Some(largest) = regions.iter().filter(|region| region.eager).max_by_key(|region| region.hosts) {
        let at = |metric, which: &str| {
            largest.figure(metric).and_then(|figure| figure[which].as_f64()).unwrap_or(f64::NAN)
        };
        let found = human_ms(at("dead host out of answers", "p50"));
        told.push((found, format!("until a dead host is out of answers, {} hosts, median", largest.hosts)));
        let loud = human_bytes(at("sent by an idle host", "p50"));
        told.push((
            format!("{loud}/s"),
            format!("sent by each of {} idle hosts, before QUIC", largest.hosts),
        ));
    }
    Ok(told)
}

fn curves(campaign: &Campaign, what: Perturbation) -> anyhow::Result<Chart> {
    let ours = |model: Model| campaign.row(what, HOSTS, model);
    let alone = Model { eager: false, ..MODELS[0] };
    let series = vec![
        Series::shares("NetworkDB", Look::Peer, &peer_row(what, HOSTS)?),
        Series::shares("chitchat alone", Look::Plain, &ours(alone)),
        Series::shares("ours, 0.3–1.5 ms", Look::OursToo, &ours(MODELS[1])),
        Series::shares("ours", Look::Ours, &ours(MODELS[0])),
    ];
    Ok(Chart { title: format!("{}: {}", what.name(), what.about()), x: TIME, y: SHARE, series })
}

fn growth(campaign: &Campaign, what: Perturbation) -> anyhow::Result<Chart> {
    let line = |name, look, at: &dyn Fn(usize) -> anyhow::Result<Vec<f64>>| {
        let points = what.sizes().iter().map(|&nodes| Ok((nodes as f64, percentile(&at(nodes)?, 90))));
        Ok::<_, anyhow::Error>(Series::line(name, look, points.collect::<anyhow::Result<Vec<_>>>()?))
    };
    let ours = |model: Model| move |nodes| Ok(campaign.row(what, nodes, model));
    let alone = Model { eager: false, ..MODELS[0] };
    let series = vec![
        line("NetworkDB", Look::Peer, &|nodes| peer_row(what, nodes))?,
        line("chitchat alone", Look::Plain, &ours(alone))?,
        line("ours, 0.3–1.5 ms", Look::OursToo, &ours(MODELS[1]))?,
        line("ours", Look::Ours, &ours(MODELS[0]))?,
    ];
    let x = Axis { label: "hosts", scale: Scale::Linear, number: |hosts| format!("{hosts:.0}") };
    let y = Axis { label: "90 % of runs are done after", scale: Scale::Log, number: human_ms };
    Ok(Chart { title: what.name().to_owned(), x, y, series })
}

fn rows(page: &mut Page, campaign: &Campaign, taken: &[Perturbation]) -> anyhow::Result<()> {
    page.section(
        "Every row, and its bytes",
        "p50 / p90 / max. Bytes: what each host sent on average from the change until the last host showed it, \
         frames and chitchat's messages together, before QUIC.",
    );
    let columns = [
        "change",
        "hosts",
        "NetworkDB",
        "ours",
        "ours, 0.3–1.5 ms",
        "chitchat alone",
        "bytes a host",
        "bytes, alone",
        "",
    ];
    let three = |row: &[f64]| [50, 90, 100].map(|at| human_ms(percentile(row, at))).join(" / ");
    let alone = Model { eager: false, ..MODELS[0] };
    let mut lines = Vec::new();
    for &what in taken {
        for &nodes in what.sizes() {
            let [ours, metro, plain] =
                [MODELS[0], MODELS[1], alone].map(|model| campaign.row(what, nodes, model));
            let bytes = |model| human_bytes(campaign.bytes_per_host(what, nodes, model));
            let peer = peer_row(what, nodes)?;
            lines.push(vec![
                what.name().to_owned(),
                nodes.to_string(),
                three(&peer),
                three(&ours),
                three(&metro),
                three(&plain),
                bytes(MODELS[0]),
                bytes(alone),
                if is_faster(&ours, &peer) { "✓".into() } else { "slower".to_owned() },
            ]);
        }
    }
    page.table(&columns, lines);
    Ok(())
}

/// What is drawn of each large region: a title, and figures that are lines of one chart.
const DRAWN: [(&str, &str, &[&str]); 2] = [
    (
        "a new member, until others show it",
        "% of hosts",
        &["write", "write, 10 % lost and repeated after 30 ms", "write, 10 % lost for good"],
    ),
    ("a crash, until others drop the host", "% of hosts", &["dead host out of answers"]),
];

fn large(page: &mut Page, regions: &[Measured]) {
    page.section(
        "Larger regions",
        "5 members a host, links of 0.3 to 1.5 ms at 1 Gbit/s; rounds of 500 ms, of 1 s above 500 hosts. Each curve: \
         the share of (change, host) pairs by then.",
    );
    let mut charts = Vec::new();
    for region in regions {
        let how = if region.eager { "" } else { ", chitchat alone" };
        for (title, label, metrics) in DRAWN {
            let looks = [Look::Ours, Look::OursToo, Look::Bad];
            let drawn = metrics.iter().zip(looks).filter_map(|(metric, look)| {
                let name =
                    metric.trim_start_matches("write, ").replace(" and repeated after 30 ms", ", repeated");
                Some(Series::shares(name, look, &values(region.figure(metric)?)))
            });
            let (series, y) = (drawn.collect(), Axis { label, ..SHARE });
            let x = Axis { label: "after (logarithmic)", ..TIME };
            charts.push(Chart { title: format!("{} hosts{how}: {title}", region.hosts), x, y, series });
        }
    }
    page.charts(charts);
    let lines = regions.iter().flat_map(|region| {
        region.figures.iter().map(|figure| {
            let unit = figure["unit"].as_str().unwrap_or_default();
            let at = |which: &str| match (figure[which].as_f64().unwrap_or(f64::NAN), unit) {
                (value, "ms") => human_ms(value),
                (value, "B/s") => format!("{}/s", human_bytes(value)),
                (value, unit) => format!("{value:.0} {unit}"),
            };
            let how = if region.eager { "" } else { ", chitchat alone" };
            vec![
                format!("{} hosts{how}", region.hosts),
                figure["metric"].as_str().unwrap_or_default().to_owned(),
                at("p50"),
                at("p99"),
                at("max"),
            ]
        })
    });
    page.table(&["region", "what", "p50", "p99", "max"], lines.collect::<Vec<_>>());
}

fn values(figure: &Value) -> Vec<f64> {
    figure["quantiles"].as_array().into_iter().flatten().filter_map(Value::as_f64).collect()
}
