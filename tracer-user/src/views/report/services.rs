//! Names of services.

use std::collections::HashMap;

use crate::foreign::Foreign;

/// Names of TCP ports: those of the host's `/etc/services`, and a built-in list for hosts that have
/// none.
#[derive(Clone, Debug, Default)]
pub struct Services {
    names: HashMap<u16, String>,
}

impl Services {
    /// Parses `/etc/services` (services(5)): name, port/protocol, aliases. Invalid lines are skipped.
    /// The first name of a port is used.
    #[must_use]
    pub fn parse(text: &str) -> Self {
        let mut names = HashMap::new();
        for line in text.lines() {
            let line = line.split('#').next().unwrap_or_default();
            let mut fields = line.split_ascii_whitespace();
            let (Some(name), Some(port)) = (fields.next(), fields.next()) else { continue };
            if let Some((port, "tcp")) = port.split_once('/')
                && let Ok(port) = port.parse()
            {
                names.entry(port).or_insert_with(|| name.to_owned());
            }
        }
        Self { names }
    }

    /// The name of a port. `None` if it has none.
    #[must_use]
    pub fn name(&self, port: u16) -> Option<Foreign<'_>> {
        let own = self.names.get(&port).map(|name| Foreign::from(name.as_str()));
        own.or_else(|| {
            let index = IANA.binary_search_by_key(&port, |(port, _)| *port).ok()?;
            IANA.get(index).map(|(_, name)| Foreign::from(*name))
        })
    }
}

/// Common services of IANA's Service Name and Transport Protocol Port Number Registry, and a few
/// widely used ones that it lists under other names. In ascending order.
const IANA: [(u16, &str); 62] = [
    (20, "ftp-data"),
    (21, "ftp"),
    (22, "ssh"),
    (23, "telnet"),
    (25, "smtp"),
    (53, "domain"),
    (80, "http"),
    (88, "kerberos"),
    (110, "pop3"),
    (111, "sunrpc"),
    (143, "imap"),
    (179, "bgp"),
    (389, "ldap"),
    (443, "https"),
    (445, "microsoft-ds"),
    (465, "submissions"),
    (514, "shell"),
    (587, "submission"),
    (631, "ipp"),
    (636, "ldaps"),
    (853, "domain-s"),
    (873, "rsync"),
    (993, "imaps"),
    (995, "pop3s"),
    (1433, "ms-sql-s"),
    (1521, "oracle"),
    (1883, "mqtt"),
    (2049, "nfs"),
    (2181, "zookeeper"),
    (2375, "docker"),
    (2376, "docker-s"),
    (2379, "etcd-client"),
    (2380, "etcd-server"),
    (3000, "hbci"),
    (3128, "squid"),
    (3260, "iscsi-target"),
    (3306, "mysql"),
    (3389, "ms-wbt-server"),
    (4222, "nats"),
    (4317, "otlp-grpc"),
    (5000, "commplex-main"),
    (5432, "postgresql"),
    (5671, "amqps"),
    (5672, "amqp"),
    (5900, "rfb"),
    (6379, "redis"),
    (6443, "kube-apiserver"),
    (7000, "afs3-fileserver"),
    (8000, "irdmi"),
    (8080, "http-alt"),
    (8443, "pcsync-https"),
    (8888, "ddi-tcp-1"),
    (9000, "cslistener"),
    (9042, "cassandra"),
    (9090, "websm"),
    (9092, "kafka"),
    (9100, "node-exporter"),
    (9200, "wap-wsp"),
    (10250, "kubelet"),
    (11211, "memcache"),
    (15672, "rabbitmq-mgmt"),
    (27017, "mongodb"),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_the_host_take_precedence() {
        let text =
            "# comment\nweb 80/tcp www # x\nother 80/udp\nfancy 12345/tcp\nbroken\nx y/tcp\n";
        let services = Services::parse(text);
        assert_eq!(services.name(80), Some("web".into()));
        assert_eq!(services.name(12_345), Some("fancy".into()));
        assert_eq!(services.name(443), Some("https".into()));
        assert_eq!(services.name(4), None);
        assert_eq!(Services::default().name(22), Some("ssh".into()));
    }

    #[test]
    fn the_table_is_sorted() {
        assert!(IANA.is_sorted_by(|(one, _), (other, _)| one < other));
    }
}
