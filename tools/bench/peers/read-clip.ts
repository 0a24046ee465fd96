// Makes pixels of a video's frames, one a second, and does nothing with them: `read-clip.ts <@llamavid/video> <path> <side>`.
import process from 'node:process';

const [library, path, side] = process.argv.slice(2) as [string, string, string];
const { openMedia }: typeof import('../../../packages/video/dist/index.js') = await import(library);

await using media = await openMedia(path, { fps: 1 });
const [mean, std] = [
  [0.5, 0.5, 0.5],
  [0.5, 0.5, 0.5],
];
const preprocessing = { size: Number(side), mean, std, fit: 'crop' as const };
let frames = 0;
for await (const { pixels, timestamps } of media.pixels(preprocessing)) {
  frames += timestamps.length;
  pixels.close();
}
if (frames !== media.expectedFrames) throw new Error(`${frames} frames of ${media.expectedFrames} came`);
