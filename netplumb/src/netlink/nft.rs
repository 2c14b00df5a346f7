//! The nft table `inet warren` in a container, by netlink.
