//! Which screens of an incident are compared with golden files, and what varies in them.

use crate::{
    golden_file::assert_golden,
    normalise::{Varying, is_same, normalise},
};

/// The commands to run at the end of an incident, beside the report.
pub fn commands(incident: &str) -> &'static [&'static [&'static str]] {
    match incident {
        // A port that no one holds.
        "exhaustion" => &[&["why", "8444"], &["why", "127.0.0.1:8443"], &["check"]],
        // A port in TIME_WAIT, and a listener's.
        "time-wait" => &[&["why", "60005"], &["why", "8080"], &["why", "127.0.0.1:8080"]],
        "bind-before-connect" => &[&["why", "60003"], &["why", "127.0.0.50:9000"]],
        "poisoned-port" => &[&["why", "60001"]],
        "blocked-listener" => &[&["why", "46580"]],
        "healthy" => &[&["check"]],
        _ => &[],
    }
}

/// What varies in the report, beside what varies in every screen.
fn varying(incident: &str) -> Varying {
    match incident {
        // Settings are read at intervals, so the change of the range can be missed.
        "blocked-listener" => {
            Varying { columns: &[], patterns: &[(r"; changed once while\s+observed", "")] }
        }
        // The kernel chooses among the default range's 28,232 ports. A client's socket stays
        // FIN_WAIT2 itself, without a minisocket, if the acknowledgement of its FIN comes while
        // close() still holds it (`tcp_rcv_state_process`, net/ipv4/tcp_input.c).
        "close-wait" => {
            Varying { columns: &["CLIENTS USED", "CLOSING", "TIME-W", "CEILING/S"], patterns: &[] }
        }
        // The ceiling depends on how long connections last.
        "healthy" => Varying { columns: &["CLIENTS USED", "CEILING/S"], patterns: &[] },
        // How many searches are long depends on the CPU; 6,500 of 12,000 ports are chosen.
        "slow-connect" => Varying {
            columns: &["CLIENTS USED"],
            patterns: &[(r"\b[\d,]+ of 6,500 searches", "SOME of 6,500 searches")],
        },
        _ => Varying::default(),
    }
}

/// What varies in the answers of commands.
const COMMAND: Varying = Varying {
    columns: &[],
    patterns: &[
        (r"on Linux \S+\n", "on Linux RELEASE\n"),
        // Which hooks there are, and which of two kinds, depends on the kernel.
        (
            r"(?m)^  (ok|-|note) +\w+ +(tp_btf|fentry|fexit|cgroup|iter|\S.* (is|are) used instead\b).*\n",
            "",
        ),
        // A setting of newer kernels.
        (r"(?m)^ .* net\.ipv4\.tcp_tw_reuse_delay = 1000\n.*\n", ""),
        // The owner, and the cgroup in which the tests run.
        (r"\b\d+/([a-z-]+) uid 0  /\S*", "PID/$1 uid 0  CGROUP"),
        // The age of a TIME_WAIT, and what is left of it.
        (r"\bfor \d+ s  free in \d+ s", "for AGE s  free in LEFT s"),
        (r"\bfor another \d+ to \d+ s", "for another LEFT s"),
        (r"\babout [\d.]+ s\b", "about LEFT s"),
        // Connections to different destinations may share a port.
        (r"[\d,]+ of 28,232 ports left", "LEFT of 28,232 ports left"),
        // Which of the ports that connect() chose belongs to which destination.
        (r"127\.0\.0\.\d+:9000\b", "127.0.0.HOST:9000"),
    ],
};

pub fn assert_report(incident: &str, screen: &str) {
    let normalised = normalise(screen, varying(incident));
    assert_golden(&format!("demo-{incident}"), &normalised, is_same);
}

pub fn assert_command(incident: &str, arguments: &[&str], screen: &str) {
    let normalised = normalise(screen, COMMAND);
    assert_golden(
        &format!("demo-{incident}-{}", arguments.join("-").replace(':', "-")),
        &normalised,
        is_same,
    );
}
