//! A report on what happens now: an output that shows nothing until the end.

use crate::{
    capacity::Forecast,
    ledger::Differences,
    model::{Failure, Instant, LeaseEvent, Netns, Pressure, Scan, Settings},
    record::{Cgroup, Loss, Start, Summary, read::Record},
    views::{
        Output, Verbosity,
        report::{Aggregate, Report, Services, text},
        stream::json::Json,
    },
};

/// How a report is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// Text, in colour or not.
    Text {
        /// For a terminal.
        colour: bool,
    },
    /// One JSON object.
    Json,
}

/// Collects records, and writes the report when the last has come.
///
/// They go through the very form in which they are recorded, so that a report on a recording
/// cannot differ from the live one.
#[derive(Debug)]
pub struct LiveReport {
    json: Json,
    aggregate: Aggregate,
    services: Services,
    form: Form,
    verbosity: Verbosity,
    buffer: Vec<u8>,
}

impl LiveReport {
    /// See [`Json::new`].
    #[must_use]
    pub fn new(
        realtime_offset_ns: i128,
        form: Form,
        services: Services,
        verbosity: Verbosity,
    ) -> Self {
        Self {
            json: Json::new(realtime_offset_ns, verbosity),
            aggregate: Aggregate::default(),
            services,
            form,
            verbosity,
            buffer: Vec::new(),
        }
    }

    /// Takes the records that have been written.
    fn take(&mut self) {
        let Self { json, aggregate, .. } = self;
        let written = json.buffer();
        for line in written.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
            match Record::parse(line) {
                Ok(record) => aggregate.take(&record),
                Err(error) => {
                    aggregate.warnings.push(format!("a record was not understood: {error}"));
                }
            }
        }
        written.clear();
    }
}

impl Output for LiveReport {
    fn start(&mut self, start: &Start) {
        self.json.start(start);
        self.take();
        if self.verbosity >= Verbosity::Normal {
            crate::tell!(
                "portlife: observing on Linux {}, leases held: {}; Ctrl-C ends it and shows the \
                 report",
                start.kernel,
                start.held
            );
        }
    }

    fn namespace(&mut self, at: Instant, netns: Netns, settings: &Settings) {
        self.json.namespace(at, netns, settings);
        self.take();
    }

    fn lease(&mut self, event: &LeaseEvent<'_>, cgroup: Option<&Cgroup>) {
        self.json.lease(event, cgroup);
        self.take();
    }

    fn failure(
        &mut self,
        failure: &Failure<'_>,
        cgroup: Option<&Cgroup>,
        holder_cgroup: Option<&Cgroup>,
    ) {
        self.json.failure(failure, cgroup, holder_cgroup);
        self.take();
    }

    fn pressure(&mut self, pressure: &Pressure, forecast: &Forecast) {
        self.json.pressure(pressure, forecast);
        self.take();
    }

    fn scan(&mut self, at: Instant, scan: &Scan) {
        self.json.scan(at, scan);
        self.take();
    }

    fn loss(&mut self, at: Instant, loss: &Loss) {
        self.json.loss(at, loss);
        self.take();
    }

    fn verify(&mut self, at: Instant, differences: &Differences) {
        self.json.verify(at, differences);
        self.take();
    }

    fn summary(&mut self, summary: &Summary) {
        self.json.summary(summary);
        self.take();
        let report = Report::of(&self.aggregate, &self.services);
        self.buffer.extend_from_slice(self.form.write(&report).as_bytes());
    }

    fn buffer(&mut self) -> &mut Vec<u8> {
        &mut self.buffer
    }
}

impl Form {
    /// The report in this form.
    #[must_use]
    pub fn write(self, report: &Report) -> String {
        match self {
            Self::Text { colour } => text::render(report, colour),
            // The report is made of what JSON can say.
            Self::Json => serde_json::to_string(&report.record()).unwrap_or_default() + "\n",
        }
    }
}
