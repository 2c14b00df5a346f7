//! warren: resolver.
