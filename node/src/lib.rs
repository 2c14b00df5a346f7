//! warren: node.
