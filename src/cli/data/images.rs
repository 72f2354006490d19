//! Images of a LeRobot set, made into the frames of a robot's cameras on the way in.

use std::path::Path;

use anyhow::{bail, ensure};
use fieldtune::camera::{Image, View};
use fieldtune::config::CameraConfig;
use fieldtune::episode::{Dataset, Images, LerobotCamera, lerobot_cameras, lerobot_final_images, lerobot_images};
use fieldtune::pixels;
use fieldtune::spaces::FrameShape;
use fieldtune::telemetry::meminfo;
use indicatif::ProgressBar;

/// What of a LeRobot set is to be seen.
#[derive(clap::Args, Clone, Default, PartialEq)]
pub(in crate::cli) struct Sight {
    /// LeRobot: a camera whose images are read; may be repeated, in order. \"none\" leaves all images out.
    #[arg(long = "camera", value_name = "NAME")]
    cameras: Vec<String>,
    /// LeRobot: size of the images; else that of the configuration's cameras, else the set's own.
    #[arg(long, value_name = "WIDTHxHEIGHT", value_parser = size)]
    image_size: Option<(u16, u16)>,
}

fn size(text: &str) -> Result<(u16, u16), String> {
    let sides = text.split_once('x').and_then(|(width, height)| Some((width.parse().ok()?, height.parse().ok()?)));
    sides.filter(|(width, height)| *width > 0 && *height > 0).ok_or_else(|| String::from("WIDTHxHEIGHT, like 64x48"))
}

/// Adds the images of `sight` to the data of a set, in the form of `robot`'s cameras where it has some.
pub(super) fn see(
    source: &Path,
    sight: &Sight,
    robot: Option<&CameraConfig>,
    data: &mut Dataset,
) -> anyhow::Result<()> {
    let all = lerobot_cameras(source)?;
    if all.is_empty() {
        ensure!(*sight == Sight::default(), "{}: --camera and --image-size are for LeRobot sets", source.display());
        return Ok(());
    }
    let chosen = choose(source, &all, &sight.cameras)?;
    let Some(first) = chosen.first() else { return Ok(()) };
    let form = form(sight, robot, first);
    let channels = u16::try_from(3 * chosen.len())?;
    let shape = FrameShape { width: form.width, height: form.height, channels };
    if let Some(wanted) = robot.and_then(CameraConfig::shape) {
        ensure!(
            wanted == shape,
            "{}: --camera makes {shape}, but this robot has {wanted}; say as many cameras as it has",
            source.display()
        );
    }
    data.images = Some(read(source, &chosen, &form, shape, data)?);
    data.check().map_err(|problem| anyhow::anyhow!("{}: {problem}", source.display()))
}

/// The cameras that were named, or the only one there is.
fn choose<'a>(source: &Path, all: &'a [LerobotCamera], named: &[String]) -> anyhow::Result<Vec<&'a LerobotCamera>> {
    let names = || all.iter().map(|camera| camera.name.as_str()).collect::<Vec<_>>().join(", ");
    match (named, all) {
        ([none], _) if none == "none" => Ok(Vec::new()),
        ([], [only]) => Ok(vec![only]),
        ([], _) => bail!(
            "data set {}: it does not say which of its cameras count, in which order ({}); say it with --camera NAME, \
             once for each, or --camera none",
            source.display(),
            names()
        ),
        (named, _) => {
            let found = |name: &String| all.iter().find(|camera| camera.name == *name);
            let unknown = |name: &String| {
                anyhow::anyhow!("data set {}: it has no camera `{name}`; there are {}", source.display(), names())
            };
            named.iter().map(|name| found(name).ok_or_else(|| unknown(name))).collect()
        }
    }
}

/// How images become frames.
fn form(sight: &Sight, robot: Option<&CameraConfig>, first: &LerobotCamera) -> CameraConfig {
    let robot = robot.filter(|robot| robot.shape().is_some());
    let mut form = robot.cloned().unwrap_or_default();
    if let Some(size) = sight.image_size.or_else(|| robot.is_none().then_some(first.size)) {
        (form.width, form.height) = size;
    }
    form
}

fn read(
    source: &Path,
    cameras: &[&LerobotCamera],
    form: &CameraConfig,
    shape: FrameShape,
    data: &Dataset,
) -> anyhow::Result<Images> {
    let bytes = shape.bytes();
    let finals = if data.final_observations.is_empty() { 0 } else { data.episode_ends.len() };
    fits(source, (data.steps() + finals) as u64 * bytes as u64)?;
    let mut images = Images { shape, steps: vec![0; data.steps() * bytes], finals: vec![0; finals * bytes] };
    let bar = ProgressBar::new((cameras.len() * data.steps()) as u64);
    for (number, camera) in cameras.iter().enumerate() {
        let mut view = View::new(form);
        let mut plane = vec![0; view.bytes()];
        let counts =
            [(lerobot_images as Reader, &mut images.steps), (lerobot_final_images as Reader, &mut images.finals)].map(
                |(read, into)| {
                    let wanted = into.len() / bytes;
                    let mut into = into.chunks_exact_mut(bytes);
                    let found = read(source, camera, &mut |picture| {
                        let frame = into.next().ok_or_else(|| String::from("is one more than the set has steps"))?;
                        let image = Image { format: picture.format, size: Some(picture.size), bytes: picture.bytes };
                        view.take(&image, &mut plane).map_err(|fault| fault.to_string())?;
                        pixels::put_camera(cameras.len(), number, &plane, frame);
                        bar.inc(1);
                        Ok(())
                    })?;
                    ensure!(
                        found == wanted,
                        "data set {}: {found} images of `{}` for {wanted} observations",
                        source.display(),
                        camera.name
                    );
                    anyhow::Ok(())
                },
            );
        counts.into_iter().collect::<anyhow::Result<()>>()?;
    }
    bar.finish_and_clear();
    Ok(images)
}

/// [`lerobot_images`] or [`lerobot_final_images`].
type Reader = fn(
    &Path,
    &LerobotCamera,
    &mut dyn FnMut(fieldtune::episode::Picture<'_>) -> Result<(), String>,
) -> Result<usize, fieldtune::episode::EpisodeError>;

/// Images are held in memory until they are written.
fn fits(source: &Path, bytes: u64) -> anyhow::Result<()> {
    let available = std::fs::read_to_string("/proc/meminfo").ok().and_then(|text| meminfo(&text, "MemAvailable:"));
    ensure!(
        available.is_none_or(|available| bytes < available),
        "data set {}: its images take {} MiB of memory, {} MiB are free; --image-size makes them smaller",
        source.display(),
        bytes >> 20,
        available.unwrap_or_default() >> 20
    );
    Ok(())
}
