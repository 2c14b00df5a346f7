//! How the processes that stay log.

use clap::ValueEnum;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::format::FmtSpan;

use super::Failure;

#[derive(Debug, Clone, clap::Args)]
pub struct LogArgs {
    /// How to log to standard error
    #[arg(long, value_enum, default_value = "text")]
    log_format: LogFormat,
    /// What to log: error, warn, info, debug, trace, or filters such as gossip=debug
    #[arg(long, env = "WARREN_LOG", default_value = "info")]
    log: String,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum LogFormat {
    Text,
    Json,
}

impl LogArgs {
    /// Logs so from now on.
    pub fn start(&self) -> Result<(), Failure> {
        // boringtun logs the expiry of an idle session as an error.
        let filter = EnvFilter::try_new(format!("{},boringtun=off", self.log))
            .map_err(|e| Failure::new(format!("--log: {e}")).code(2))?;
        let log = tracing_subscriber::fmt().with_env_filter(filter).with_span_events(FmtSpan::NONE);
        // Whoever read it may have gone: to say so there would end the process.
        let log = log.with_writer(std::io::stderr).log_internal_errors(false);
        // The journal has times of its own.
        let journal = std::env::var_os("JOURNAL_STREAM").is_some();
        match self.log_format {
            LogFormat::Text if journal => log.with_ansi(false).without_time().init(),
            LogFormat::Text => log.with_ansi(false).init(),
            LogFormat::Json => log.json().init(),
        }
        Ok(())
    }

    /// The flags that make another process log the same.
    pub fn flags(&self) -> [String; 2] {
        let format = match self.log_format {
            LogFormat::Text => "text",
            LogFormat::Json => "json",
        };
        [format!("--log-format={format}"), format!("--log={}", self.log)]
    }
}
