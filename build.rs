//! Names the conditions under which there is a control socket, and so a takeover: the feature `control`, on Linux; and
//! the metrics of a server, and the command that watches one: beside those.

use std::env;

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rustc-check-cfg=cfg(control)");
    println!("cargo::rustc-check-cfg=cfg(metrics)");
    println!("cargo::rustc-check-cfg=cfg(top)");
    // For CI: with RUSTFLAGS, which has the same effect, every dependency is built anew.
    println!("cargo::rerun-if-env-changed=STANDFAST_PORTABLE");
    let is_linux = env::var("CARGO_CFG_TARGET_OS").is_ok_and(|os| os == "linux");
    let asked = env::var_os("STANDFAST_PORTABLE").is_some();
    if asked {
        println!("cargo::rustc-cfg=standfast_portable");
    }
    let is_portable = asked || env::var_os("CARGO_CFG_STANDFAST_PORTABLE").is_some();
    if is_linux && !is_portable && env::var_os("CARGO_FEATURE_CONTROL").is_some() {
        println!("cargo::rustc-cfg=control");
        if env::var_os("CARGO_FEATURE_METRICS").is_some() {
            println!("cargo::rustc-cfg=metrics");
        }
        if env::var_os("CARGO_FEATURE_TOP").is_some() {
            println!("cargo::rustc-cfg=top");
        }
    }
}
