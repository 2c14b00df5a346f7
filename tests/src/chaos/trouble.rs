sed -n 60,80p tests/tests/survival.rs; sed -n 85,100p tests/tests/kernel_wireguard.rs
