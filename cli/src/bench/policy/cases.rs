//! What is measured: all that was asked for, or a base and what differs from it in one way.

use hetmem_core::units::{ByteLen, PAGE_SIZE};

use super::Options;
use super::contender::Device;
use super::program::Workload;

/// How large pages are.
#[derive(clap::ValueEnum, Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum PageSize {
    /// 4 KiB
    Small,
    /// 2 MiB: the kernel's huge pages; hot and cold ones differ as a whole
    Huge,
}

/// What is measured in one piece.
#[derive(Clone, Copy, PartialEq, Debug)]
pub(super) struct Case {
    pub(super) workload: Workload,
    pub(super) pages: PageSize,
    /// As a part of the data.
    pub(super) limit: f64,
    pub(super) device: Device,
}

/// Where nothing is said.
const BASE: Case = Case { workload: Workload::Zipf, pages: PageSize::Small, limit: 0.5, device: Device::Private };
const LIMITS: [f64; 4] = [0.9, 0.5, 0.25, 0.1];
const DEVICES: [Device; 2] = [Device::Private, Device::Coherent];
const WORKLOADS: [Workload; 5] = [Workload::Zipf, Workload::Uniform, Workload::Scan, Workload::Phase, Workload::Chase];

impl Case {
    /// Its name in results.
    pub(super) fn name(&self) -> String {
        let Self { workload, limit, device, .. } = self;
        let huge = if self.pages == PageSize::Huge { " huge" } else { "" };
        format!("{}{huge} {limit} {}", workload.name(), device.name())
    }

    /// The limit, of so much data; at least a page.
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a part of a number of pages")]
    pub(super) fn limit_of(&self, data: ByteLen) -> ByteLen {
        let pages = (crate::bench::samples::float(data.get() / PAGE_SIZE) * self.limit) as u64;
        ByteLen::new(pages.max(1) * PAGE_SIZE)
    }
}

/// What is to be measured.
pub(super) fn cases(options: &Options, quick: bool) -> Vec<Case> {
    if !options.chooses_no_case() {
        return all_of(options);
    }
    if quick {
        return vec![
            Case { device: Device::Coherent, ..BASE },
            Case { workload: Workload::Phase, pages: PageSize::Huge, device: Device::Coherent, ..BASE },
            Case { workload: Workload::Scan, ..BASE },
            Case { workload: Workload::Chase, ..BASE },
        ];
    }
    let mut cases = Vec::new();
    for device in DEVICES {
        let base = Case { device, ..BASE };
        cases.extend(LIMITS.map(|limit| Case { limit, ..base }));
        cases.push(Case { pages: PageSize::Huge, ..base });
        let others = WORKLOADS.into_iter().filter(|workload| *workload != base.workload);
        cases.extend(others.map(|workload| Case { workload, ..base }));
    }
    cases.push(Case { device: Device::PrivateSlow, ..BASE });
    cases
}

/// Everything with everything.
fn all_of(options: &Options) -> Vec<Case> {
    fn given<T: Copy>(values: &[T], base: &[T]) -> Vec<T> {
        if values.is_empty() { base.to_vec() } else { values.to_vec() }
    }
    let mut cases = Vec::new();
    for workload in given(&options.workload, &[BASE.workload]) {
        for pages in given(&options.pages, &[BASE.pages]) {
            for limit in given(&options.limit, &[BASE.limit]) {
                for device in given(&options.device, &DEVICES) {
                    cases.push(Case { workload, pages, limit, device });
                }
            }
        }
    }
    cases
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_chosen_is_as_in_the_base_and_names_differ() {
        let options = Options { limit: vec![0.25, 0.1], device: vec![Device::Coherent], ..Options::default() };
        let names: Vec<String> = cases(&options, false).iter().map(Case::name).collect();
        assert_eq!(names, ["zipf 0.25 coherent", "zipf 0.1 coherent"]);
        for quick in [true, false] {
            let mut names: Vec<String> = cases(&Options::default(), quick).iter().map(Case::name).collect();
            let count = names.len();
            names.sort();
            names.dedup();
            assert_eq!(names.len(), count);
        }
    }

    #[test]
    fn a_limit_is_whole_pages() {
        assert_eq!(Case { limit: 0.1, ..BASE }.limit_of(ByteLen::new(1 << 30)).get(), 26_214 * PAGE_SIZE);
    }
}
