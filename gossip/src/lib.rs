//! warren: gossip.
