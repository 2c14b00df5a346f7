//! Who holds a UDP port, read out of `/proc/net/udp` (proc(5)). Pure.

use std::collections::BTreeSet;
use std::fmt;

/// Whoever has a socket on a port.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Holder {
    /// The kernel itself, as for VXLAN.
    Kernel,
    /// A process.
    Process {
        /// Which.
        pid: u32,
        /// Its command.
        name: String,
    },
    /// Somebody who cannot be seen from here.
    Hidden,
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Holder::Kernel => f.write_str("the kernel"),
            Holder::Process { pid, name } => write!(f, "{name} ({pid})"),
            Holder::Hidden => f.write_str("somebody else"),
        }
    }
}

/// The inodes of the sockets on `port` in one of the kernel's tables; 0 is the kernel's own.
pub fn held(table: &str, port: u16) -> BTreeSet<u64> {
    let sockets = table.lines().skip(1).filter_map(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let (_, local) = fields.get(1)?.rsplit_once(':')?;
        let same = u16::from_str_radix(local, 16).ok()? == port;
        if same { fields.get(9)?.parse().ok() } else { None }
    });
    sockets.collect()
}
