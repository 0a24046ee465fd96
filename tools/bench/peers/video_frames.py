"""Samples a video at one frame a second and makes small frames: `video_frames.py decord|av <path> <side> <threads>`.

As programs do that feed a model: decoded by the library, then Pillow's bicubic filter to the shorter side.
"""

import sys

from PIL import Image

library, path = sys.argv[1:3]
side, threads = map(int, sys.argv[3:])


def small(frame):
    scale = side / min(frame.size)
    return frame.resize((round(frame.width * scale), round(frame.height * scale)), Image.Resampling.BICUBIC)


if library == "decord":
    import decord

    reader = decord.VideoReader(path, num_threads=threads)
    step = round(reader.get_avg_fps())
    frames = [small(Image.fromarray(reader[index].asnumpy())) for index in range(0, len(reader), step)]
else:
    import av

    with av.open(path) as container:
        stream = container.streams.video[0]
        stream.thread_type, stream.codec_context.thread_count = "AUTO", threads
        step = round(stream.average_rate)
        decoded = enumerate(container.decode(stream))
        frames = [small(frame.to_image()) for index, frame in decoded if index % step == 0]
print(len(frames))
