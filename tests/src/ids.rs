//! Identifiers as users have them.

/// A private network.
pub const PN: &str = "pn-ad0fd6a1-d05e-40ea-bf63-c4f8a75a9d8c";
/// Another private network.
pub const PN2: &str = "pn-5e1b5a3c-9d41-4b0e-8f5e-0b6f2b7f1c22";
/// A third one.
pub const PN3: &str = "pn-1c9a7d52-6f0e-4c3d-9b1a-7e5f2a8c4d10";
/// An app.
pub const AP: &str = "ap-a71da13f-7c70-4c00-a644-eee8558d8053";
/// Another app.
pub const AP2: &str = "ap-3f9c2f6e-1f6b-4a52-9d8c-6a1f0d2b7e44";
/// The zone all private names end in.
pub const ZONE: &str = "private-network.internal";

/// A name in a network: `labels` stand before the network's id.
pub fn name(labels: &str, network: &str) -> String {
    format!("{labels}.{network}.{ZONE}")
}
