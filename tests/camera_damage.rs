//! Promise: whatever a camera sends, nothing panics, and no memory is taken that the image's size does not account for.
#![allow(unsafe_code, reason = "a counting allocator forwards to the system's")]
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a test fails by panicking and says what it found")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use fieldtune::camera::{Image, ImageFault, View};
use fieldtune::config::CameraConfig;
use firmware_bridge::ImageFormat;

thread_local! {
    static LARGEST: Cell<usize> = const { Cell::new(0) };
}

/// Remembers the largest request of the thread.
struct Counting;

fn remember(size: usize) {
    LARGEST.with(|largest| largest.set(largest.get().max(size)));
}

// SAFETY: everything is forwarded to the system's allocator.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        remember(layout.size());
        // SAFETY: the caller's promise.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        remember(layout.size());
        // SAFETY: the caller's promise.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        remember(size);
        // SAFETY: the caller's promise.
        unsafe { System.realloc(pointer, layout, size) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Baseline with 4:2:0, baseline with restarts and 4:2:2, progressive, grey; all 64 x 48, made by Pillow.
const PICTURES: [&[u8]; 4] = [
    include_bytes!("data/camera/baseline.jpg"),
    include_bytes!("data/camera/restarts.jpg"),
    include_bytes!("data/camera/progressive.jpg"),
    include_bytes!("data/camera/grey.jpg"),
];

fn config() -> CameraConfig {
    CameraConfig { source_size: [64, 48], width: 16, height: 12, ..CameraConfig::default() }
}

/// A stream of numbers; the same seed gives the same damage.
struct Dice(u64);

impl Dice {
    fn below(&mut self, most: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % most.max(1) as u64) as usize
    }
}

fn mutate(picture: &[u8], dice: &mut Dice) -> Vec<u8> {
    let mut bytes = picture.to_vec();
    for _ in 0..=dice.below(4) {
        let at = dice.below(bytes.len());
        match dice.below(6) {
            0 => bytes[at] ^= 1 << dice.below(8),
            1 => bytes[at] = dice.below(256) as u8,
            2 => bytes[at] = 0xff,
            3 => drop(bytes.drain(at..(at + dice.below(40)).min(bytes.len()))),
            4 => {
                let piece = bytes[at..(at + dice.below(40)).min(bytes.len())].to_vec();
                let to = dice.below(bytes.len());
                bytes.splice(to..to, piece);
            }
            _ if bytes.len() > 4 => bytes.truncate(2 + at),
            _ => {}
        }
        if bytes.is_empty() {
            bytes.push(0xff);
        }
    }
    // Half of those that were cut get their end back, so that the decoder sees them.
    if dice.below(2) == 0 {
        bytes.extend([0xff, 0xd9]);
    }
    bytes
}

/// Damages so many pictures and looks at what becomes of each.
fn damage(count: usize) {
    // What an undamaged one takes: the decoder's own rows, and 64 x 48 pixels.
    let mut view = View::new(&config());
    let mut into = vec![0; view.bytes()];
    for bytes in PICTURES {
        view.take(&Image { format: ImageFormat::Jpeg, size: None, bytes }, &mut into).unwrap();
    }
    let usual = LARGEST.with(Cell::get);
    let mut dice = Dice(0x9e37_79b9_7f4a_7c15);
    let mut found = [0_usize; 5];
    for n in 0..count {
        let bytes = mutate(PICTURES[n % PICTURES.len()], &mut dice);
        let outcome = view.take(&Image { format: ImageFormat::Jpeg, size: None, bytes: &bytes }, &mut into);
        found[match outcome {
            Ok(()) => 0,
            Err(ImageFault::Truncated) => 1,
            Err(ImageFault::Damaged(_)) => 2,
            Err(ImageFault::Size { .. }) => 3,
            Err(ImageFault::Format(_)) => 4,
            Err(fault) => panic!("{fault}"),
        }] += 1;
    }
    let largest = LARGEST.with(Cell::get);
    let [shown, truncated, damaged, size, format] = found;
    println!(
        "{count} mutated JPEGs: {shown} shown, {truncated} cut off, {damaged} damaged, {size} of another size, \
         {format} no JPEG; largest request {largest} bytes, undamaged {usual}"
    );
    assert!(largest <= 16 * usual.max(1 << 16), "{largest} bytes for an image of 64 x 48");
    assert!(truncated * damaged * size * format > 0, "every fault has a name: {found:?}");
}

#[test]
fn mutated_jpegs_are_shown_or_named() {
    damage(4000);
}

#[test]
#[ignore = "long: a million mutated JPEGs, some minutes"]
fn a_million_mutated_jpegs() {
    damage(1_000_000);
}

/// A cut anywhere, the end of the image put behind it or not: named, or the rest of the picture is there.
#[test]
fn every_cut_of_a_jpeg_is_named() {
    let mut view = View::new(&config());
    let mut into = vec![0; view.bytes()];
    for picture in PICTURES {
        for cut in 0..picture.len() {
            let bytes = &picture[..cut];
            let outcome = view.take(&Image { format: ImageFormat::Jpeg, size: None, bytes }, &mut into);
            assert!(outcome.is_err(), "{cut} of {} bytes", picture.len());
        }
    }
}

#[test]
fn sizes_and_formats_that_do_not_fit_are_named() {
    let mut view = View::new(&config());
    let mut into = vec![0; view.bytes()];
    let mut take = |format, size, bytes: &[u8]| view.take(&Image { format, size, bytes }, &mut into);
    let rgb = vec![7; 64 * 48 * 3];
    assert_eq!(take(ImageFormat::Rgb8, Some((64, 48)), &rgb), Ok(()));
    assert_eq!(take(ImageFormat::Rgb8, Some((64, 48)), &rgb[1..]), Err(ImageFault::Truncated));
    let wrong = ImageFault::Size { found: (48, 64), wanted: (64, 48) };
    assert_eq!(take(ImageFormat::Rgb8, Some((48, 64)), &rgb), Err(wrong));
    assert_eq!(take(ImageFormat::Jpeg, None, &rgb), Err(ImageFault::Format("JPEG")));
    let wrong = ImageFault::Size { found: (64, 48), wanted: (32, 48) };
    assert_eq!(take(ImageFormat::Jpeg, Some((32, 48)), PICTURES[0]), Err(wrong));
    let small = CameraConfig { crop: [60, 0, 16, 16], ..config() };
    let refused =
        View::new(&small).take(&Image { format: ImageFormat::Rgb8, size: Some((64, 48)), bytes: &rgb }, &mut into);
    assert!(matches!(refused, Err(ImageFault::Small { .. })));
}

/// The same picture as JPEG, RGB8 and YUYV, by numpy in double precision: `tools/bench/camera_golden.py`.
#[test]
fn pictures_are_those_of_numpy() {
    let golden = include_bytes!("data/camera/golden.rgb");
    let rgb = include_bytes!("data/camera/picture.rgb");
    let yuyv = include_bytes!("data/camera/picture.yuyv");
    let jpeg = include_bytes!("data/camera/picture.jpg");
    let config = CameraConfig { source_size: [64, 48], width: 10, height: 7, ..CameraConfig::default() };
    let mut view = View::new(&config);
    let mut into = vec![0; view.bytes()];
    // RGB: rounding alone. YUYV shares colours between pixels and rounds before; a JPEG loses by itself.
    for (format, bytes, most) in
        [(ImageFormat::Rgb8, &rgb[..], 1), (ImageFormat::Yuyv, &yuyv[..], 2), (ImageFormat::Jpeg, &jpeg[..], 6)]
    {
        view.take(&Image { format, size: Some((64, 48)), bytes }, &mut into).unwrap();
        let apart = into.iter().zip(golden).map(|(a, b)| a.abs_diff(*b)).max();
        println!("{format:?}: at most {apart:?} levels from numpy");
        assert!(apart <= Some(most), "{format:?}: {apart:?}");
    }
}
