//! The flags that lead to the agent's configuration.

use std::path::PathBuf;

use super::Failure;
use crate::config::Config;

#[derive(Debug, clap::Args)]
pub struct ConfigArgs {
    /// The configuration file [default: /etc/warren/agent.toml]
    #[arg(short, long, env = "WARREN_CONFIG")]
    config: Option<PathBuf>,
    /// Set a key of the configuration, for example --set gossip.listen=192.0.2.1:7946
    #[arg(long = "set", value_name = "KEY=VALUE", value_parser = key_value)]
    overrides: Vec<(String, String)>,
}

fn key_value(text: &str) -> Result<(String, String), String> {
    let (key, value) = text.split_once('=').ok_or("expected KEY=VALUE")?;
    Ok((key.to_owned(), value.to_owned()))
}

impl ConfigArgs {
    pub fn load(&self) -> Result<Config, Failure> {
        Config::load(self.config.as_deref(), std::env::vars(), &self.overrides)
            .map_err(|e| Failure::new(format!("configuration: {e:#}")).code(2))
    }
}
