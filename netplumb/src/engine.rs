//! WireGuard in userspace, for kernels without it.
