#!/usr/bin/env python3
"""Reads an MCAP export with the mcap package and compares it with the NPZ export of the same run.

    python3 -m venv VENV && VENV/bin/pip install mcap numpy pillow
    fieldtune data export RUN --out run.mcap
    fieldtune data export RUN --out run.npz
    VENV/bin/python tools/interop/mcap_log.py run.mcap run.npz

Every step of the NPZ must be in the log, with equal numbers and in order; stamps must not go back. Images, where there
are some, must have equal pixels (Pillow decodes them). Then the same
log is cut in the middle: what is whole must still be read, and be the beginning of the same messages. Where `rerun` is
there (pip install rerun-sdk), its own check reads the log, too.
"""

import base64
import io
import json
import os
import shutil
import struct
import subprocess
import sys

import numpy as np
from mcap.exceptions import McapError
from mcap.reader import NonSeekingReader, make_reader


def messages(stream, reader=make_reader):
    """Topic, nanoseconds and fields of every message that can be read, in the order of the file."""
    found = []
    try:
        for _, channel, message in reader(stream).iter_messages(log_time_order=False):
            found.append((channel.topic, message.log_time, json.loads(message.data)))
    except (McapError, EOFError, struct.error) as error:  # the package's ways to say that bytes are missing
        return found, error
    return found, None


def pixels(data):
    from PIL import Image
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(data))))


def equal(step, wanted):
    observation, action, reward, terminated, image = step
    return (np.array_equal(np.float32(observation), wanted[0]) and np.array_equal(np.float32(action), wanted[1])
            and np.float32(reward) == wanted[2] and terminated == bool(wanted[3])
            and (image is None or np.array_equal(image, wanted[4])))


def main(log_path, npz_path):
    data = open(log_path, "rb").read()
    found, error = messages(io.BytesIO(data))
    assert error is None, error
    summary = make_reader(io.BytesIO(data)).get_summary()
    topics = {c.topic: summary.statistics.channel_message_counts[i] for i, c in summary.channels.items()}
    for topic, count in sorted(topics.items()):
        print(f"{topic:<14} {count} messages")

    steps, observation, action, images = [], None, None, {}
    last = 0
    for topic, stamp, fields in found:
        if topic == "/observation":
            assert stamp >= last, "the stamps go back"
            last = stamp
            observation = list(fields.values())
        elif topic == "/action":
            action = list(fields.values())
        elif topic.startswith("/camera"):
            assert fields["format"] == "png" and fields["timestamp"] == dict(zip(("sec", "nsec"), divmod(stamp, 10**9)))
            images[topic] = pixels(fields["data"])
        else:
            image = np.concatenate([images[camera] for camera in sorted(images)], -1) if images else None
            steps.append((observation, action, fields["reward"], fields["terminated"], image))
    npz = dict(np.load(npz_path))
    # The export as a data set leaves out a step whose successor is missing: it is a subsequence of the log's.
    logged = iter(steps)
    for i, row in enumerate(npz["observations"]):
        wanted = (row, npz["actions"][i], npz["rewards"][i], npz["terminals"][i], npz["images"][i] if images else None)
        assert any(equal(step, wanted) for step in logged), f"step {i} is not in the log, or not in its place"
    assert bool(images) == ("images" in npz), "the log has images and the NPZ has none, or the other way round"
    print(f"{len(npz['rewards'])} steps of the NPZ are in the log with equal numbers, {len(steps)} steps in the log"
          + (f", with the images of {len(images)} cameras" if images else ""))

    beside = os.path.join(os.path.dirname(sys.executable), "rerun")
    rerun = beside if os.path.exists(beside) else shutil.which("rerun")
    if rerun:
        subprocess.run([rerun, "mcap", "check", log_path], check=True)
        print("rerun mcap check: no complaints")
    else:
        print("skipped: rerun mcap check: rerun is not installed")

    part, error = messages(io.BytesIO(data[: len(data) // 2]), NonSeekingReader)
    assert error is not None and 0 < len(part) < len(found) and part == found[: len(part)]
    print(f"cut in the middle: {len(part)} of {len(found)} messages read, then {type(error).__name__}")


if __name__ == "__main__":
    main(*sys.argv[1:])
