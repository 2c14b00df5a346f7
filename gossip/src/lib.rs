//! Membership and replicated records: who is in the region and what each host says.

pub mod id;
pub mod record;
pub mod standing;
pub mod view;
