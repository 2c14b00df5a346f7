//! Kernels changed behind their agents' backs.

use anyhow::Context as _;
use netplumb::observed::{ObservedNetwork, PortFlags};
use netplumb::state::{Few, Vtep};
use tokio::time::Instant;

use super::Stage;
use crate::operation::Sabotage;

impl Stage {
    pub(super) fn sabotage(&mut self, host: usize, what: Sabotage) -> anyhow::Result<()> {
        let others = self.cluster.hosts.iter().enumerate().filter(|(number, _)| *number != host);
        let elsewhere = others.map(|(_, other)| Vtep { address: other.address.ip(), port: 4789 }).next();
        let elsewhere = elsewhere.context("there is only one host")?;
        let victim = &mut self.cluster.hosts[host];
        victim.meddled = Some(Instant::now());
        victim.kernel.edit(|kernel| {
            kernel.networks.values_mut().for_each(|network| network.meddle(what, elsewhere));
        });
        Ok(())
    }
}

trait Meddle {
    fn meddle(&mut self, what: Sabotage, elsewhere: Vtep);
}

impl Meddle for ObservedNetwork {
    fn meddle(&mut self, what: Sabotage, elsewhere: Vtep) {
        if what == Sabotage::DropNetwork {
            self.fabric = None;
            for binding in self.members.values_mut().filter_map(|member| member.binding.as_mut()) {
                binding.ethernet = None;
                binding.neighbours.clear();
            }
        }
        if let Some(fabric) = &mut self.fabric {
            match what {
                Sabotage::DropRows => fabric.rows.clear(),
                Sabotage::TurnRows => {
                    fabric.rows.values_mut().for_each(|ends| *ends = Few::from([elsewhere]));
                }
                Sabotage::DropTunnel => {
                    fabric.vxlan = None;
                    fabric.rows.clear();
                }
                Sabotage::Flood => {
                    fabric.ports.values_mut().for_each(|port| port.flags = PortFlags::DEFAULT);
                }
                Sabotage::DropDevice | Sabotage::DropPeers | Sabotage::DropNetwork => {}
            }
        }
        for inside in self.members.values_mut().filter_map(|member| member.inside.as_mut()) {
            match what {
                Sabotage::DropDevice => {
                    inside.device = None;
                    inside.routes.clear();
                }
                Sabotage::DropPeers => {
                    inside.device.iter_mut().for_each(|device| device.peers.clear());
                }
                _ => {}
            }
        }
    }
}
