//! warren: netplumb.
