//! Frames: own changes out, others' changes in and on.

use std::net::SocketAddr;

use bytes::Bytes;
use rand::seq::IndexedRandom as _;
use tokio::time::Instant;

use super::Seat;
use crate::eager::Heard;
use crate::view::Via;
use crate::wire::Pushed;

impl Seat {
    /// Pushes the own changes that waited to some random hosts.
    pub(super) async fn push_own(&mut self) {
        let frame = {
            let chitchat = self.chitchat.chitchat();
            let mut chitchat = chitchat.lock().await;
            let owner = chitchat.self_chitchat_id().clone();
            self.eager.own_frame(&owner, chitchat.self_node_state(), Instant::now())
        };
        let Some(frame) = frame.filter(|_| self.stay.config.eager) else { return };
        for to in self.listeners(&[]) {
            self.eager.spend(frame.len(), Instant::now());
            self.stay.wire.push(to, frame.clone());
        }
    }

    /// Takes in a frame, and pushes it on if it was news.
    pub(super) async fn hear_frame(&mut self, Pushed { from, frame }: Pushed) {
        let now = Instant::now();
        let interval = self.stay.config.interval;
        let (heard, news) = {
            let chitchat = self.chitchat.chitchat();
            let mut chitchat = chitchat.lock().await;
            let counts = |node_id: &str| self.builder.counts(node_id);
            let heard = self.eager.hear(&frame, &mut chitchat, counts, interval, now);
            let news = match &heard {
                Heard::Applied(owner) => chitchat.node_state(owner).map(|state| (owner.clone(), state)),
                _ => None,
            };
            if let Some((owner, state)) = &news {
                self.builder.see(owner, state, Via::Frame, now);
            }
            (heard, news.map(|(owner, _)| owner.gossip_advertise_addr))
        };
        self.stay.wire.counters().frame(heard.outcome());
        if heard == (Heard::Gap { pull: true }) {
            self.gossip(from);
        }
        if let Some(owner) = news {
            self.tell_soon();
            self.forward(frame, [from, owner]);
        }
    }

    fn forward(&mut self, frame: Bytes, not_to: [SocketAddr; 2]) {
        for to in self.listeners(&not_to) {
            if !self.eager.may_forward(frame.len(), Instant::now()) {
                self.stay.wire.counters().frame("shed");
                return;
            }
            self.stay.wire.push(to, frame.clone());
        }
    }

    /// So many random hosts that a rumour reaches all but a few, and those by their next gossip.
    fn listeners(&self, not_to: &[SocketAddr]) -> Vec<SocketAddr> {
        let hosts = self.builder.answering().len() + 1;
        let fan_out = (hosts as f64).ln().ceil() as usize + 3;
        let drawn = self.builder.answering().sample(&mut rand::rng(), fan_out + not_to.len()).copied();
        drawn.filter(|to| !not_to.contains(to)).take(fan_out).collect()
    }
}
