//! Golden screens that need neither root nor a certain kernel: reports on recordings, compared byte
//! by byte, alignment, wrapping and cutting included. The test `demos` compares the live screens.
//!
//! Also tests of what compares those.

mod file;
mod normalise;

use std::process::Command;

use file::{assert_golden, directory};
use normalise::{Varying, is_same, normalise};

/// Compares the report on `recordings/NAME.ndjson` with `screens/recorded-NAME.txt`.
fn assert_report_of_recording(name: &str) {
    let recording = directory().join(format!("recordings/{name}.ndjson"));
    let output = Command::new(env!("CARGO_BIN_EXE_portlife"))
        .args(["report", "--from"])
        .arg(&recording)
        .output()
        .expect("portlife runs");
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{stderr}");
    let screen = String::from_utf8(output.stdout).expect("screens are UTF-8");
    assert_golden(&format!("recorded-{name}"), &screen, str::eq);
}

#[test]
fn report_of_a_recorded_exhaustion() {
    assert_report_of_recording("exhaustion");
}

#[test]
fn report_of_a_recorded_time_wait() {
    assert_report_of_recording("time-wait");
}

#[test]
fn report_of_a_recorded_bind_before_connect() {
    assert_report_of_recording("bind-before-connect");
}

const SCREEN: &str = "\
FAILING: 3 connect()s to 10.0.0.1:8443 failed: 10 of 10 ports of 60000-60009 are taken, 10 by
         shop[25090]; at 6,675 a second, none are left in 823.9ms.

Destinations
  DESTINATION    USED/OF  RATE/S  FULL IN  MOST BY
  10.0.0.1:8443    10/10    10.5      now  shop[25090]
  10.0.0.2:8443     1/10       0     8.6s  shop[25090] ESTAB…

Listeners
  ADDRESS  SERVICE  OWNER        ACCEPTED
  *:80     http     nginx[2509]         0  all addresses

How long connect() searched: 11 times, mean 7us, p99 53us
      1us to 2us             8 ████████
      2us to 5us             0

  4026532177: tcp_max_tw_buckets 131072, tcp_fin_timeout 60 s
  nsenter -t 25090 -n sysctl -w net.ipv4.ip_local_reserved_ports=\"8443\"; ls /proc/25090/fd

Observed from 2026-11-25T05:07:24 UTC for 3.2ms on Linux 6.18.44-fc-v657: 47 records.
";

const NORMALISED: &str = "\
FAILING: 3 connect()s to 10.0.0.1:8443 failed: 10 of 10 ports of 60000-60009 are taken, 10 by
         shop[PID]; at RATE a second, none are left in DURATION.

Destinations
  DESTINATION    USED/OF  RATE/S  FULL IN  MOST BY
  10.0.0.1:8443    10/10    MEASURED      now  shop[PID]
  10.0.0.2:8443     1/10       0     DURATION  shop[PID] ESTAB…

Listeners
  ADDRESS    OWNER        ACCEPTED
  *:80          nginx[PID]         0  all addresses

How long connect() searched: 11 times, mean DURATION, p99 DURATION

  NETNS: tcp_max_tw_buckets NUMBER, tcp_fin_timeout 60 s
  nsenter -t PID -n sysctl -w net.ipv4.ip_local_reserved_ports=\"8443\"; ls /proc/PID/fd

Observed from TIME UTC for DURATION on Linux RELEASE: SOME records.
";

#[test]
fn only_what_differs_from_run_to_run_is_replaced() {
    let normalised = normalise(SCREEN, Varying::default());
    assert!(is_same(NORMALISED, &normalised), "{normalised}");
    assert_eq!(normalise(&normalised, Varying::default()), normalised);
}

#[test]
fn a_screen_can_have_more_that_varies() {
    let varying = Varying { columns: &["USED/OF"], patterns: &[(r"\b\d+ times", "SOME times")] };
    let normalised = normalise(SCREEN, varying);
    assert!(normalised.contains("  10.0.0.1:8443    MEASURED    MEASURED      now"));
    assert!(normalised.contains("searched: SOME times"));
}

#[test]
fn every_number_that_must_be_exact_is_compared() {
    for (from, to) in [
        ("10 of 10 ports", "11 of 10 ports"),
        ("10.0.0.1:8443    10/10", "10.0.0.1:8443     9/10"),
        ("60000-60009", "60000-60010"),
        ("FAILING: 3", "FAILING: 4"),
        ("searched: 11 times", "searched: 12 times"),
        ("tcp_fin_timeout 60 s", "tcp_fin_timeout 30 s"),
        ("=\"8443\"", "=\"8444\""),
        ("now", "-"),
        ("     0     8.6s", "   1.2     8.6s"),
        ("shop[25090];", "shop;"),
        ("         0  all addresses", "         1  all addresses"),
        ("  10.0.0.2:8443     1/10       0     8.6s  shop[25090] ESTAB…\n", ""),
        ("failed", "succeeded"),
    ] {
        assert!(SCREEN.contains(from), "{from}");
        let changed = normalise(&SCREEN.replacen(from, to, 1), Varying::default());
        assert!(!is_same(NORMALISED, &changed), "{from} -> {to}");
    }
}

#[test]
fn layout_and_cuts_do_not_matter_in_live_screens() {
    assert!(is_same("a  b\n  c\n\nd", "a b c\n\nd\n"));
    assert!(!is_same("a\n\nb", "a b"));
    for (golden, actual) in [
        ("shop[PID] ESTAB…", "shop[PID] ESTAB (connect)"),
        ("any port to 127.0.0.5… x", "any port to 127.0.… x"),
        ("a whole text x", "a whole… x"),
    ] {
        assert!(is_same(golden, actual) && is_same(actual, golden), "{golden}");
    }
    assert!(!is_same("any port… of 12 x", "any port to of 13 x"));
    let long = format!("a {} x", "b".repeat(100));
    assert!(!is_same("a … x", &long));
}
