//! Verdicts on the settings of a namespace that decide how many ports it has.

use crate::model::{Port, Settings, TIME_WAIT_S, TimeWaitReuse};

/// The grade of a setting.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Grade {
    /// Nothing to do.
    Good,
    /// It is a limit that may matter, depending on the load.
    Note,
    /// It costs ports, or can make calls fail.
    Bad,
}

/// A setting and its verdict.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// The name of the setting, without the leading `net.`.
    pub setting: &'static str,
    /// Its value, as the kernel shows it.
    pub value: String,
    /// The grade.
    pub grade: Grade,
    /// The reason for the grade, in a sentence.
    pub meaning: String,
}

/// Ports of the default `ip_local_port_range`, 32768 to 60999.
const DEFAULT_CAPACITY: u32 = 28_232;
/// Ports of the widest useful range, 1024 to 65535.
const MAX_CAPACITY: u32 = 64_512;

/// Judges every setting that decides how many ports there are. `listeners` are the ports
/// of its listeners, ascending; `time_waits` is the number of its TIME_WAITs.
#[must_use]
pub fn judge(settings: &Settings, listeners: &[Port], time_waits: u32) -> Vec<Verdict> {
    // Exhaustive, so that a new setting must be judged or left out deliberately.
    let Settings {
        range: _,
        reserved: _,
        step_width: _,
        autobind_reuse,
        unprivileged_start: _,
        time_wait_reuse,
        time_wait_reuse_delay_ms,
        timestamps,
        max_time_waits,
        fin_timeout_s,
        max_listen_backlog: _,
    } = settings;
    let mut verdicts = vec![range(settings), reserved(settings, listeners)];
    verdicts.push(tw_reuse(*time_wait_reuse, *timestamps));
    if let Some(delay_ms) = *time_wait_reuse_delay_ms {
        verdicts.push(Verdict {
            setting: "ipv4.tcp_tw_reuse_delay",
            value: delay_ms.to_string(),
            grade: if delay_ms > 1000 { Grade::Note } else { Grade::Good },
            meaning: format!(
                "a port in TIME_WAIT can be reused after {} s",
                f64::from(delay_ms) / 1e3
            ),
        });
    }
    verdicts.push(Verdict {
        setting: "ipv4.tcp_timestamps",
        value: u8::from(*timestamps).to_string(),
        grade: if *timestamps { Grade::Good } else { Grade::Bad },
        meaning: if *timestamps {
            "on; without timestamps no port in TIME_WAIT can be reused".to_owned()
        } else {
            "without timestamps no port in TIME_WAIT can be reused: set it to 1".to_owned()
        },
    });
    verdicts.push(max_tw_buckets(*max_time_waits, time_waits));
    verdicts.push(Verdict {
        setting: "ipv4.tcp_fin_timeout",
        value: fin_timeout_s.to_string(),
        grade: if *fin_timeout_s > TIME_WAIT_S { Grade::Note } else { Grade::Good },
        meaning: format!(
            "a closed connection whose peer stays silent holds its port for {fin_timeout_s} s; \
             it does not shorten TIME_WAIT, which always lasts {TIME_WAIT_S} s"
        ),
    });
    verdicts.push(Verdict {
        setting: "ipv4.ip_autobind_reuse",
        value: u8::from(*autobind_reuse).to_string(),
        grade: Grade::Good,
        meaning: if *autobind_reuse {
            "bind() to port 0 shares ports among SO_REUSEADDR sockets when none is free".to_owned()
        } else {
            "bind() to port 0 chooses only ports that are free on its address".to_owned()
        },
    });
    verdicts
}

fn range(settings: &Settings) -> Verdict {
    let capacity = settings.capacity();
    let rate = match capacity / TIME_WAIT_S {
        // Small rates are not rounded down.
        0..10 => format!("{:.2}", f64::from(capacity) / f64::from(TIME_WAIT_S)),
        rate => rate.to_string(),
    };
    let parity = if settings.range.len() % 2 == 1 {
        "; the number is odd, so connect() may leave one of them out"
    } else {
        ""
    };
    let (grade, advice) = match capacity {
        0 => (Grade::Bad, ": every port of the range is reserved".to_owned()),
        few if few < DEFAULT_CAPACITY / 4 => (Grade::Bad, "; too few for most hosts".to_owned()),
        some if some < MAX_CAPACITY / 2 => (
            Grade::Note,
            format!(
                "; `sysctl -w net.ipv4.ip_local_port_range=\"1024 65535\"` allows {}/s",
                MAX_CAPACITY / TIME_WAIT_S
            ),
        ),
        _ => (Grade::Good, String::new()),
    };
    Verdict {
        setting: "ipv4.ip_local_port_range",
        value: format!("{} {}", settings.range.low().0, settings.range.high().0),
        grade,
        meaning: format!(
            "{capacity} ports for each destination, or {rate} connections/s to it if this side closes \
             first{advice}{parity}"
        ),
    }
}

fn reserved(settings: &Settings, listeners: &[Port]) -> Verdict {
    let exposed: Vec<_> =
        listeners.iter().copied().filter(|port| settings.may_choose(*port)).collect();
    let value = settings.reserved.to_string();
    let setting = "ipv4.ip_local_reserved_ports";
    if exposed.is_empty() {
        let meaning = "no server listens on an unreserved port of the range";
        return Verdict { setting, value, grade: Grade::Good, meaning: meaning.to_owned() };
    }
    let all = exposed.iter().fold(settings.reserved.clone(), |all, port| all.with(*port));
    let ports: Vec<_> = exposed.iter().map(|port| port.0.to_string()).collect();
    Verdict {
        setting,
        value,
        grade: Grade::Bad,
        meaning: format!(
            "servers listen in the range on {}: while one restarts, a client may be given its \
             port; `sysctl -w net.ipv4.ip_local_reserved_ports={all}`",
            ports.join(", ")
        ),
    }
}

fn tw_reuse(reuse: TimeWaitReuse, timestamps: bool) -> Verdict {
    let (grade, meaning) = match reuse {
        _ if !timestamps => (Grade::Note, "no effect without timestamps"),
        TimeWaitReuse::Always => (Grade::Good, "connect() reuses ports in TIME_WAIT"),
        TimeWaitReuse::Loopback => (
            Grade::Note,
            "connect() reuses ports in TIME_WAIT only on the loopback interface; with 1, for all \
             destinations",
        ),
        TimeWaitReuse::Never => (
            Grade::Note,
            "connect() never reuses ports in TIME_WAIT; with 1 it does, for all destinations",
        ),
    };
    Verdict {
        setting: "ipv4.tcp_tw_reuse",
        value: reuse.number().to_string(),
        grade,
        meaning: meaning.to_owned(),
    }
}

fn max_tw_buckets(most: u32, now: u32) -> Verdict {
    let is_full = now >= most;
    Verdict {
        setting: "ipv4.tcp_max_tw_buckets",
        value: most.to_string(),
        grade: if is_full { Grade::Note } else { Grade::Good },
        meaning: if is_full {
            format!("{now} TIME_WAITs now: further connections end without one")
        } else {
            format!("{now} TIME_WAITs now")
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{LocalRange, PortSet};

    fn settings(range: &str, reserved: &str) -> Settings {
        Settings {
            range: LocalRange::parse(range).unwrap(),
            reserved: PortSet::parse(reserved).unwrap(),
            time_wait_reuse: TimeWaitReuse::Always,
            ..Settings::sample()
        }
    }

    fn grade(verdicts: &[Verdict], setting: &str) -> Grade {
        verdicts.iter().find(|verdict| verdict.setting == setting).unwrap().grade
    }

    #[test]
    fn a_wide_range_with_reserved_server_ports_is_good() {
        let verdicts = judge(&settings("1024 65535", "8080"), &[Port(80), Port(8080)], 5);
        let worst = verdicts.iter().map(|verdict| verdict.grade).max();
        assert_eq!(worst, Some(Grade::Good), "{verdicts:#?}");
    }

    #[test]
    fn a_server_in_the_range_is_bad_and_the_remedy_keeps_reserved_ports() {
        let verdicts = judge(&settings("1024 65535", "8081"), &[Port(80), Port(8080)], 5);
        let verdict = verdicts.iter().find(|verdict| verdict.grade == Grade::Bad).unwrap();
        assert_eq!(verdict.setting, "ipv4.ip_local_reserved_ports");
        assert!(verdict.meaning.contains("on 8080:"), "{}", verdict.meaning);
        assert!(verdict.meaning.contains("reserved_ports=8080-8081"), "{}", verdict.meaning);
    }

    #[test]
    fn small_ranges_and_missing_timestamps_are_bad() {
        let mut narrow = settings("50000 50009", "");
        narrow.timestamps = false;
        let verdicts = judge(&narrow, &[], 0);
        assert_eq!(grade(&verdicts, "ipv4.ip_local_port_range"), Grade::Bad);
        assert_eq!(grade(&verdicts, "ipv4.tcp_timestamps"), Grade::Bad);
        assert_eq!(grade(&verdicts, "ipv4.tcp_tw_reuse"), Grade::Note);
    }

    #[test]
    fn a_full_time_wait_table_is_noted() {
        let verdicts = judge(&settings("1024 65535", ""), &[], 1 << 17);
        assert_eq!(grade(&verdicts, "ipv4.tcp_max_tw_buckets"), Grade::Note);
    }
}
