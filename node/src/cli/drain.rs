//! `warren drain`.

use std::process::ExitCode;

use super::Failure;
use super::client::Client;
use super::output::Output;
use crate::api::{DrainRequest, Drained};

#[derive(Debug, clap::Args)]
#[command(
    long_about = "Take no new containers on this host, and lead names to those it has no more: before maintenance, while \
                  its containers are started elsewhere.\n\nNew connections go to the app's containers on other hosts \
                  as soon as the names are asked for again; a name that has none there does not resolve. Those here \
                  keep their addresses and connections until they are detached or end. It holds until it is taken \
                  back, also after a restart of the agent or the machine."
)]
pub struct Args {
    /// Take new containers again, and lead names to those here
    #[arg(long)]
    off: bool,
}

pub fn run(client: &Client, args: &Args, out: &Output) -> Result<ExitCode, Failure> {
    let drained: Drained = client.post("/v1/drain", &DrainRequest { draining: !args.off })?;
    out.one(&drained, if drained.draining { "draining" } else { "taking" }, || text(&drained));
    Ok(ExitCode::SUCCESS)
}

fn text(Drained { draining, members, ttl_s }: &Drained) -> String {
    match (draining, members) {
        (true, 0) => "draining: this host takes no new containers; it has none".to_owned(),
        (true, members) => format!(
            "draining: this host takes no new containers, and names do not lead to the {members} here; who asked \
             before may use their addresses for {ttl_s} s more"
        ),
        (false, members) => {
            format!("not draining: this host takes new containers, and names lead to the {members} here")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn people_are_told_how_long_names_linger() {
        let told = |draining, members| text(&Drained { draining, members, ttl_s: 30 });
        assert!(told(true, 5).contains("the 5 here") && told(true, 5).contains("30 s"));
        assert!(told(true, 0).contains("it has none") && !told(true, 0).contains("30 s"));
        assert!(told(false, 5).starts_with("not draining"));
    }
}
