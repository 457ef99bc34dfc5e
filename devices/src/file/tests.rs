use std::os::unix::fs::FileExt as _;

use hetmem_core::sync::{Mutex, lock};
use hetmem_core::units::{ByteLen, FrameIndex, VirtAddr};
use hetmem_sys::copy::{PageBytes, load_page, store_page};
use hetmem_sys::mapping::{Arena, ArenaOptions};
use hetmem_sys::timer::await_readable;

use super::*;
use crate::conformance;

/// What is to happen instead of what does.
type Plan = Box<dyn FnMut(Step) -> Option<Result<usize, Errno>> + Send>;

#[derive(Default)]
pub(super) struct Trouble(Mutex<Option<Plan>>);

impl Trouble {
    pub(super) fn outcome(&self, step: Step, result: Result<usize, Errno>) -> Result<usize, Errno> {
        lock(&self.0).as_mut().and_then(|plan| plan(step)).unwrap_or(result)
    }
}

/// A folder on a disk: that of the build's, as the folder for temporary files may be memory.
fn folder() -> String {
    std::env::current_exe().unwrap().parent().unwrap().to_str().unwrap().to_owned()
}

/// Whether it is on one; if not it is said.
#[expect(clippy::print_stderr, reason = "a test that can't run here says so")]
fn has_disk() -> bool {
    Scratch::create(&folder()).inspect_err(|why| eprintln!("skipped: {why}")).is_ok()
}

fn device(size: &str) -> FileStore {
    let spec = format!("private:file={},size={size}", folder()).parse().unwrap();
    FileStore::new(DeviceId::new(0), Owner::new(1), &spec).unwrap()
}

fn plan(device: &FileStore, plan: impl FnMut(Step) -> Option<Result<usize, Errno>> + Send + 'static) {
    *lock(&device.trouble.0) = Some(Box::new(plan));
}

fn no_plan(device: &FileStore) {
    *lock(&device.trouble.0) = None;
}

fn frames(first: u32, pages: u64) -> FrameRun {
    FrameRun { first: FrameIndex::new(first), pages: PageCount::new(pages) }
}

/// Pages of memory.
struct Pages(Arena);

impl Pages {
    fn new(pages: u64) -> Self {
        Self(Arena::reserve(PageCount::new(pages), &ArenaOptions::default()).unwrap())
    }

    fn at(&self, page: u64) -> VirtAddr {
        self.0.range().start().add_pages(PageCount::new(page))
    }

    #[expect(unsafe_code, reason = "writes a page of its own")]
    fn set(&self, page: u64, bytes: &PageBytes) {
        // SAFETY: a page of this arena, which nobody else knows.
        unsafe { store_page(self.at(page), bytes) };
    }

    #[expect(unsafe_code, reason = "reads a page of its own")]
    fn get(&self, page: u64) -> PageBytes {
        let mut bytes = [0; 4096];
        // SAFETY: a page of this arena, which nobody else knows.
        unsafe { load_page(&mut bytes, self.at(page)) };
        bytes
    }
}

fn random(seed: u64) -> PageBytes {
    let mut bytes = [0; 4096];
    for (word, at) in bytes.as_chunks_mut::<8>().0.iter_mut().zip(1..) {
        *word = (seed + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_mul(at).to_ne_bytes();
    }
    bytes
}

fn results(batch: &[Transfer]) -> Vec<Result<(), TransferError>> {
    batch.iter().map(Transfer::result).collect()
}

/// Waits for what is under way of `batch`, whose tickets are their places.
fn end(device: &FileStore, batch: &mut [Transfer]) {
    let under_way = |batch: &[Transfer]| batch.iter().any(|transfer| transfer.progress == Progress::UnderWay);
    while under_way(batch) {
        await_readable(device.completion_descriptor().unwrap());
        device.completions(&mut |ticket, result| {
            batch[usize::try_from(ticket.get()).unwrap()].progress = Progress::Done(result);
        });
    }
}

/// Batches of every form: runs of many and of few, next to one another and not, as large as a block; each with its pages.
fn batches() -> Vec<Vec<FrameRun>> {
    vec![
        vec![frames(0, 1)],
        vec![frames(700, 512)],
        (0..40).map(|i| frames(i, 1)).collect(),
        (0..12).map(|i| frames(i * 3, 2)).collect(),
        vec![frames(10, 200), frames(210, 3), frames(213, 16), frames(1, 1)],
    ]
}

fn batch(runs: &[FrameRun], pages: &Pages, make: fn(FrameRun, VirtAddr) -> Transfer) -> Vec<Transfer> {
    let mut page = 0;
    let one = |(i, run): (usize, &FrameRun)| {
        // A page between them, so that memory does not follow where frames do.
        let at = pages.at(page);
        page += run.pages.get() + 1;
        make(*run, at).with_ticket(Ticket::new(i as u64))
    };
    runs.iter().enumerate().map(one).collect()
}

fn fill(batch: &[Transfer], pages: &Pages, seed: u64) {
    for transfer in batch {
        let first = transfer.memory.pages_since(pages.at(0)).get();
        (0..transfer.frames.pages.get())
            .for_each(|i| pages.set(first + i, &random(seed ^ (u64::from(transfer.frames.first.get()) + i))));
    }
}

fn verify(transfer: &Transfer, pages: &Pages, seed: u64) {
    let first = transfer.memory.pages_since(pages.at(0)).get();
    for i in 0..transfer.frames.pages.get() {
        let expected = random(seed ^ (u64::from(transfer.frames.first.get()) + i));
        assert!(
            pages.get(first + i) == expected,
            "frame {} is what was put there",
            u64::from(transfer.frames.first.get()) + i
        );
    }
}

#[test]
fn it_conforms_whether_transfers_end_at_once_or_late() {
    if !has_disk() {
        return;
    }
    let folder = folder();
    for injected in ["", ",latency=3us", ",latency=1ms"] {
        conformance::check(|capacity| {
            let size = capacity.bytes().get();
            let spec = format!("private:file={folder},size={size}{injected}").parse().unwrap();
            crate::kind::make(DeviceId::new(0), Owner::new(1), &spec).unwrap()
        });
    }
    // Where the machine has no more queues.
    conformance::check(|capacity| {
        let device = device(&capacity.bytes().get().to_string());
        plan(&device, |step| (step == Step::Begin).then_some(Err(Errno::AGAIN)));
        Box::new(device)
    });
}

#[test]
fn a_faults_reads_are_under_way_while_there_is_room_for_them_and_one_for_what_follows_one_another() {
    if !has_disk() {
        return;
    }
    let device = device("8M");
    let pages = Pages::new(1024);
    let runs: Vec<FrameRun> =
        (0..400).map(|i| frames(i * 2 + u32::from(i >= 16), 1)).chain([frames(1000, 16)]).collect();
    let mut into = batch(&runs, &pages, Transfer::into_frames);
    fill(&into, &pages, 9);
    device.transfer(&mut into);
    // Next to one another, and from one place each.
    let mut near = batch(&[frames(1000, 4), frames(1004, 1), frames(1005, 11)], &pages, Transfer::out_of_frames);
    device.submit(&mut near);
    assert!(near.iter().all(|transfer| transfer.progress == Progress::UnderWay));
    await_readable(device.completion_descriptor().unwrap());
    let mut ended = Vec::new();
    device.completions(&mut |ticket, result| ended.push((ticket.get(), result)));
    assert_eq!(ended, [(0, Ok(())), (1, Ok(())), (2, Ok(()))], "they were one read");
    near.iter().for_each(|transfer| verify(transfer, &pages, 9));
    let mut far = batch(&runs[..400], &pages, Transfer::out_of_frames);
    device.submit(&mut far);
    assert_eq!(far.iter().filter(|transfer| transfer.progress == Progress::UnderWay).count(), late::MOST);
    end(&device, &mut far);
    assert!(results(&far).iter().all(Result::is_ok));
    far.iter().for_each(|transfer| verify(transfer, &pages, 9));
}

/// Each step of each batch fails in each way: what is said to be there is, and what is not is said.
#[test]
fn whatever_fails_at_whatever_step_no_page_is_lost_or_wrong() {
    if !has_disk() {
        return;
    }
    let troubles: [(Step, Result<usize, Errno>); 8] = [
        (Step::Write, Err(Errno::NOSPC)),
        (Step::Write, Err(Errno::IO)),
        (Step::Write, Ok(4096)),
        (Step::Write, Ok(100)),
        (Step::Read, Err(Errno::IO)),
        (Step::Read, Ok(4096)),
        (Step::Read, Ok(0)),
        (Step::Begin, Err(Errno::AGAIN)),
    ];
    let pages = Pages::new(1024);
    for (form, runs) in batches().iter().enumerate() {
        for (step, instead) in troubles {
            let device = device("8M");
            for late in [false, true] {
                for nth in 0.. {
                    let seen = std::sync::Arc::new(std::sync::atomic::AtomicU64::new(0));
                    let count = seen.clone();
                    plan(&device, move |asked| {
                        use std::sync::atomic::Ordering::SeqCst;
                        (asked == step && count.fetch_add(1, SeqCst) == nth).then_some(instead)
                    });
                    let seed = nth << 32 | (form as u64) << 24;
                    let mut into = batch(runs, &pages, Transfer::into_frames);
                    fill(&into, &pages, seed);
                    device.transfer(&mut into);
                    let mut out = batch(runs, &pages, Transfer::out_of_frames);
                    (0..1024).for_each(|page| pages.set(page, &[0xEE; 4096]));
                    if late {
                        device.submit(&mut out);
                        end(&device, &mut out);
                    } else {
                        device.transfer(&mut out);
                    }
                    // Tried once more by itself, and this time it is as it should be.
                    for (into, out) in into.iter().zip(&out) {
                        assert_eq!((into.result(), out.result()), (Ok(()), Ok(())), "{step:?} {instead:?} {nth}");
                        verify(out, &pages, seed);
                    }
                    if seen.load(std::sync::atomic::Ordering::SeqCst) <= nth {
                        break;
                    }
                }
            }
        }
    }
}

#[test]
fn what_fails_again_and_again_has_the_outcome_that_the_port_has_for_it() {
    if !has_disk() {
        return;
    }
    let pages = Pages::new(1024);
    let runs = [frames(0, 1), frames(20, 40), frames(100, 200)];
    let device = device("8M");
    let into = || {
        let mut into = batch(&runs, &pages, Transfer::into_frames);
        fill(&into, &pages, 5);
        device.transfer(&mut into);
        results(&into)
    };
    assert_eq!(into(), [Ok(()); 3]);
    for (errno, error) in [
        (Errno::NOSPC, TransferError::Full),
        (Errno::DQUOT, TransferError::Full),
        (Errno::FBIG, TransferError::Full),
        (Errno::IO, TransferError::Transient),
    ] {
        plan(&device, move |step| (step == Step::Write).then_some(Err(errno)));
        assert_eq!(into(), [Err(error); 3]);
    }
    plan(&device, |step| (step == Step::Write).then_some(Ok(0)));
    assert_eq!(into(), [Err(TransferError::Full); 3], "nothing is written, and nobody says why");
    no_plan(&device);
    assert_eq!(into(), [Ok(()); 3]);
    for (result, error) in [
        (Err(Errno::IO), TransferError::Lost),
        (Ok(0), TransferError::Lost),
        (Err(Errno::NOMEM), TransferError::Transient),
    ] {
        plan(&device, move |step| (step == Step::Read).then_some(result));
        for late in [false, true] {
            let mut out = batch(&runs, &pages, Transfer::out_of_frames);
            if late {
                device.submit(&mut out);
                end(&device, &mut out);
            } else {
                device.transfer(&mut out);
            }
            assert_eq!(results(&out), [Err(error); 3]);
        }
    }
    no_plan(&device);
    let mut out = batch(&runs, &pages, Transfer::out_of_frames);
    device.transfer(&mut out);
    out.iter().for_each(|out| verify(out, &pages, 5));
}

#[test]
fn a_page_that_the_disk_has_changed_is_lost_and_its_neighbours_are_not() {
    if !has_disk() {
        return;
    }
    let pages = Pages::new(1024);
    let runs = [frames(0, 16), frames(16, 512)];
    let device = device("8M");
    let mut into = batch(&runs, &pages, Transfer::into_frames);
    fill(&into, &pages, 1);
    device.transfer(&mut into);
    let file = std::fs::File::from(device.file.as_fd().try_clone_to_owned().unwrap());
    let through = std::fs::OpenOptions::new()
        .read(true)
        .write(true)
        .open(format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&file)))
        .unwrap();
    let mut byte = [0];
    through.read_exact_at(&mut byte, 7 * 4096 + 99).unwrap();
    through.write_all_at(&[byte[0] ^ 1], 7 * 4096 + 99).unwrap();
    // Where another frame's page was written.
    through.write_all_at(&random(1 ^ 300), 301 * 4096).unwrap();
    through.sync_all().unwrap();
    for late in [false, true] {
        let one = |frame: u32| {
            let mut out = [Transfer::out_of_frames(frames(frame, 1), pages.at(0)).with_ticket(Ticket::new(0))];
            if late {
                device.submit(&mut out);
                end(&device, &mut out);
            } else {
                device.transfer(&mut out);
            }
            if out[0].result().is_ok() {
                verify(&out[0], &pages, 1);
            }
            out[0].result()
        };
        for frame in [0, 6, 8, 300, 302, 527] {
            assert_eq!(one(frame), Ok(()));
        }
        assert_eq!([one(7), one(301)], [Err(TransferError::Lost); 2]);
        // Of more than one it is not said that all are lost, unless the first is: each is asked for by itself.
        let mut out = batch(&[frames(0, 16), frames(7, 2), frames(400, 100)], &pages, Transfer::out_of_frames);
        if late {
            device.submit(&mut out);
            end(&device, &mut out);
        } else {
            device.transfer(&mut out);
        }
        assert_eq!(results(&out), [Err(TransferError::Transient), Err(TransferError::Lost), Ok(())]);
    }
}

#[test]
fn what_the_disk_has_no_room_for_is_refused_and_what_is_there_stays() {
    if !has_disk() {
        return;
    }
    let pages = Pages::new(1024);
    let device = device("1G");
    let there = batch(&[frames(0, 512)], &pages, Transfer::into_frames);
    fill(&there, &pages, 3);
    device.transfer(&mut there.clone());
    assert_eq!(device.room(), device.pagemap().frames.capacity());
    plan(&device, |step| (step == Step::Reserve).then_some(Err(Errno::NOSPC)));
    assert_eq!(device.prepare(frames(100_000, 3)), Err(NoBacking));
    let mut into = batch(&[frames(100_000, 3), frames(600, 2)], &pages, Transfer::into_frames);
    device.transfer(&mut into);
    assert_eq!(results(&into), [Err(TransferError::Full), Ok(())]);
    assert_eq!(device.room().get(), 16_384, "what was taken with the first frame");
    no_plan(&device);
    assert_eq!(device.prepare(frames(100_000, 3)), Ok(PageCount::ZERO));
    let mut out = batch(&[frames(0, 512)], &pages, Transfer::out_of_frames);
    device.transfer(&mut out);
    verify(&out[0], &pages, 3);
}

#[test]
fn folders_that_will_not_do_are_refused_by_what_they_are() {
    if !has_disk() {
        return;
    }
    let refused = |path: &str| {
        let spec = format!("private:file={path},size=1M");
        crate::spec::parse_all(&[spec], ByteLen::new(1 << 40)).unwrap_err().to_string()
    };
    let at = |why: &str, path: &str| {
        let said = refused(path);
        assert!(said.contains(why) && !said.contains('\n'), "{said}");
    };
    at("give a folder that is there", "/nonexistent-folder");
    at("not a file or a device", "/proc/self/exe");
    at("not a file or a device", "/dev/null");
    at("such as /var/tmp", "/dev/shm");
    at("no unnamed files", "/proc/self/task");
    assert!(refused("relative").contains("absolute"));
    let coherent = format!("coherent:file={},size=1M", folder());
    let coherent = crate::spec::parse_all(&[coherent], ByteLen::new(1 << 40)).unwrap_err().to_string();
    assert!(coherent.contains("use private:file"), "{coherent}");
    let large = format!("private:file={},size=15T", folder());
    let large = crate::spec::parse_all(&[large], ByteLen::new(1 << 30)).unwrap_err().to_string();
    assert!(large.contains("has room for"), "{large}");
}
