//! Frames: own changes out, others' changes in and on.

use std::net::SocketAddr;

use bytes::Bytes;
use futures::FutureExt as _;
use rand::seq::IndexedRandom as _;
use tokio::time::Instant;

use super::Seat;
use crate::eager::Heard;
use crate::view::Via;
use crate::wire::Pushed;

/// How many frames are heard before it is seen what else there is to do.
const FRAMES_AT_ONCE: usize = 64;

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

    /// Takes in a frame and those that wait behind it, and pushes on what was news.
    pub(super) async fn hear_frames(&mut self, first: Pushed) {
        let wire = self.stay.wire.clone();
        self.hear_frame(first).await;
        for _ in 1..FRAMES_AT_ONCE {
            let Some(next) = wire.pushed().now_or_never().flatten() else { return };
            self.hear_frame(next).await;
        }
    }

    async fn hear_frame(&mut self, Pushed { from, frame }: Pushed) {
        let heard = self.take_in(&frame).await;
        self.stay.wire.counters().frame(heard.outcome());
        match heard {
            Heard::Applied(owner) => {
                self.tell_soon();
                self.forward(frame, [from, owner.gossip_advertise_addr]);
            }
            Heard::Gap { owner, pull: true } => self.pull(&owner.node_id, from),
            _ => {}
        }
    }

    /// Takes a frame into chitchat and into the view.
    pub(super) async fn take_in(&mut self, frame: &[u8]) -> Heard {
        let (now, interval) = (Instant::now(), self.stay.config.interval);
        let chitchat = self.chitchat.chitchat();
        let mut chitchat = chitchat.lock().await;
        let heard =
            self.eager.hear(frame, &mut chitchat, |node_id| self.builder.counts(node_id), interval, now);
        if let Heard::Applied(owner) = &heard
            && let Some(state) = chitchat.node_state(owner)
        {
            self.builder.see(owner, state, Via::Frame, now);
        }
        heard
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
