//! The `warren` command: the agent and everything that talks to it.

use std::process::ExitCode;

fn main() -> ExitCode {
    node::cli::main()
}
