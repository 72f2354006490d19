//! Promise: a V4L2 device is a camera. Run by `tools/camera-qemu` in a guest whose kernel has a virtual one (vivid).
#![cfg(feature = "camera-v4l2")]
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a test fails by panicking and says what it found")]

use std::path::Path;
use std::time::Duration;

use fieldtune::camera::{Camera, CameraError, Capture, View, open};
use fieldtune::clock::{Clock, monotonic};
use fieldtune::config::{CameraConfig, CameraSource, ImageStream};

const DEVICE: &str = "/dev/video0";
const WAIT: Duration = Duration::from_secs(2);

fn config(format: ImageStream) -> CameraConfig {
    CameraConfig { format, source_size: [640, 480], rate_hz: 30.0, ..CameraConfig::default() }
}

fn device(config: &CameraConfig) -> Result<Box<dyn Camera>, CameraError> {
    open(&CameraSource::V4l2(DEVICE.into()), config, &Clock::Monotonic, |_| Err(String::new()))
}

/// Images, and what they said of themselves.
fn capture(camera: &mut dyn Camera, view: &mut View, images: usize) -> Vec<(Capture, Vec<u8>)> {
    let mut pixels = vec![0; view.bytes()];
    (0..images)
        .map(|_| (camera.newest(WAIT, view, &mut pixels).unwrap().expect("an image within 2 s"), pixels.clone()))
        .collect()
}

#[test]
#[ignore = "needs a V4L2 device that nobody uses: tools/camera-qemu"]
fn three_hundred_images_of_every_format() {
    let mut first: Option<Vec<u8>> = None;
    for format in [ImageStream::Yuyv, ImageStream::Rgb, ImageStream::Mjpeg] {
        let config = config(format);
        let mut camera = match device(&config) {
            Ok(camera) => camera,
            Err(CameraError::Unfit(why)) => {
                println!("skipped: {format:?}: {why}");
                continue;
            }
            Err(error) => panic!("{error}"),
        };
        let begin = monotonic();
        let images = capture(&mut *camera, &mut View::new(&config), 300);
        let seconds = monotonic().since(begin).as_secs_f64();
        let sum = |what: fn(&Capture) -> u32| images.iter().map(|(capture, _)| what(capture)).sum::<u32>();
        println!(
            "{format:?}: 300 images in {seconds:.1} s, numbers {} to {}, {} missing, {} overtaken",
            images[0].0.sequence,
            images[299].0.sequence,
            sum(|capture| capture.missing),
            sum(|capture| capture.overtaken)
        );
        assert!(images.windows(2).all(|two| two[0].0.sequence < two[1].0.sequence && two[0].0.taken < two[1].0.taken));
        assert!(images.windows(2).any(|two| two[0].1 != two[1].1), "the picture moves");
        // vivid shows the same colour bars in every format: the leftmost are white, yellow and cyan.
        let row = &images[0].1[48 * 3 * 40..48 * 3 * 41];
        let first = first.get_or_insert_with(|| row.to_vec());
        let apart = row.iter().zip(first.iter()).map(|(a, b)| a.abs_diff(*b)).max();
        println!("{format:?}: at most {apart:?} levels from the first format in row 40; it begins {:?}", &row[..3]);
    }
    assert!(first.is_some(), "no format at all");
}

#[test]
#[ignore = "needs a V4L2 device that is unplugged from outside: tools/camera-qemu"]
fn unplugged_and_plugged_in_again() {
    let config = config(ImageStream::Headers);
    let mut view = View::new(&config);
    let mut camera = device(&config).unwrap();
    capture(&mut *camera, &mut view, 30);
    println!("UNPLUG");
    let mut pixels = vec![0; view.bytes()];
    let end = monotonic().plus(Duration::from_mins(1));
    let why = loop {
        assert!(monotonic() < end, "the unplugged camera was not noticed");
        match camera.newest(WAIT, &mut view, &mut pixels) {
            Ok(_) => {}
            Err(error @ CameraError::Lost { .. }) => break error,
            Err(error) => panic!("{error}"),
        }
    };
    println!("lost: {why}");
    drop(camera);
    println!("REPLUG");
    let mut camera = loop {
        assert!(monotonic() < end, "the camera did not come back");
        match device(&config) {
            Ok(camera) => break camera,
            Err(_) => Clock::Monotonic.sleep_until(monotonic().plus(Duration::from_millis(100))),
        }
    };
    let images = capture(&mut *camera, &mut view, 30);
    println!("again: 30 images, from number {}", images[0].0.sequence);
    assert!(Path::new(DEVICE).exists());
}
