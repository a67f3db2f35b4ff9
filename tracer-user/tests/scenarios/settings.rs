//! Reading the settings of a namespace from the kernel.

use std::{fs::File, thread};

use tracer_user::{
    kernel::namespace::settings::{SettingsError, SettingsFiles},
    model::{Port, PortSet, TimeWaitReuse},
};

use crate::support::sandbox;

#[test]
fn settings_are_read_from_the_right_namespace_and_follow_changes() {
    let Some(sandbox) = sandbox() else { return };
    let handle = File::open("/proc/thread-self/ns/net").expect("the namespace has a file");
    // Opened and read by threads in other namespaces.
    let files = thread::spawn(move || SettingsFiles::open_in(&handle))
        .join()
        .expect("the thread does not panic");
    let files = files.expect("the settings can be opened");
    let read = || files.read().expect("the settings can be read");
    assert_eq!(read().capacity(), 28_232);
    sandbox.set("ipv4/ip_local_port_range", "50000 50009").expect("the setting can be written");
    sandbox
        .set("ipv4/ip_local_reserved_ports", "1,50003-50005,60000")
        .expect("the setting can be written");
    sandbox.set("ipv4/tcp_tw_reuse", "1").expect("the setting can be written");
    sandbox.set("ipv4/tcp_timestamps", "0").expect("the setting can be written");
    sandbox.set("ipv4/ip_autobind_reuse", "1").expect("the setting can be written");
    let settings =
        thread::scope(|scope| scope.spawn(read).join().expect("the thread does not panic"));
    assert_eq!((settings.range.low(), settings.range.high()), (Port(50_000), Port(50_009)));
    assert_eq!(settings.reserved.to_string(), "1,50003-50005,60000");
    assert_eq!(settings.capacity(), 7);
    assert_eq!(settings.time_wait_reuse, TimeWaitReuse::Always);
    assert!(!settings.timestamps);
    assert!(settings.autobind_reuse);
    assert_eq!(settings.fin_timeout_s, 30, "as the test's surroundings set it");
    if settings.time_wait_reuse_delay_ms.is_some() {
        sandbox.set("ipv4/tcp_tw_reuse_delay", "7").expect("the setting can be written");
        assert_eq!(read().time_wait_reuse_delay_ms, Some(7));
    } else {
        println!("skipped: this kernel lacks tcp_tw_reuse_delay");
    }
}

#[test]
fn a_long_list_of_reserved_ports_is_read_in_full() {
    let Some(sandbox) = sandbox() else { return };
    let files = SettingsFiles::open().expect("the settings can be opened");
    // Longer than the buffer of the first read, and as long as a list can be.
    let some: PortSet = (10_001..=15_001).step_by(2).map(Port).collect();
    let most: PortSet = (1..=65_535).filter(|port| port % 3 != 0).map(Port).collect();
    for (list, ranges) in [(some, 2501), (most, 21_845)] {
        sandbox
            .set("ipv4/ip_local_reserved_ports", &list.to_string())
            .expect("the setting can be written");
        let settings = files.read().expect("the settings can be read");
        assert_eq!(settings.reserved, list);
        assert_eq!(settings.reserved.to_string().split(',').count(), ranges);
    }
}

#[test]
fn the_settings_of_a_destroyed_namespace_cannot_be_read() {
    let files = thread::spawn(|| {
        let _sandbox = sandbox()?;
        Some(SettingsFiles::open().expect("the settings can be opened"))
    });
    let Some(files) = files.join().expect("the thread does not panic") else { return };
    // The kernel tears down namespaces in the background.
    let patience = std::time::Instant::now();
    loop {
        match files.read() {
            Err(SettingsError::Read { .. }) => return,
            Err(other) => panic!("{other}"),
            Ok(_) => assert!(patience.elapsed().as_secs() < 60, "the namespace stays"),
        }
        thread::yield_now();
    }
}
