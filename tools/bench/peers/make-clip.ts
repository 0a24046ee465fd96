// Writes a clip of so many seconds with our own encoder: `make-clip.ts <@llamavid/video> <source> <path> <seconds> <fps>`. The source
// runs forth and back, so that nothing jumps.
import process from 'node:process';

const [library, source, path, length, rate] = process.argv.slice(2) as [
  string,
  string,
  string,
  string,
  string,
];
const [seconds, fps] = [Number(length), Number(rate)];
const { openMedia, writeVideo }: typeof import('../../../packages/video/dist/index.js') = await import(
  library
);

/** Frames of the source that are held at a time. */
const MOST = 90;
const frames: Uint8Array[] = [];
let [width, height] = [0, 0];
await using media = await openMedia(source, { fps: 1000 });
for await (const frame of media.frames()) {
  frames.push(frame.data);
  ({ width, height } = frame);
  if (frames.length === MOST) break;
}
const there = frames.length - 1;
function* forthAndBack() {
  for (let number = 0; number < seconds * fps; number += 1) {
    const step = number % (2 * there);
    yield frames[step <= there ? step : 2 * there - step] as Uint8Array;
  }
}
await writeVideo(path, forthAndBack(), { width, height, fps, preset: 'fast', threads: 2 });
