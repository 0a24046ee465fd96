import { expect, it } from 'vitest';
import {
  callNative,
  callNativeAsync,
  decodeImage,
  WorldVideo,
  type WorldVideoOptions,
} from '../src/index.js';

const OPTIONS: WorldVideoOptions = {
  seed: 4,
  index: 0,
  kind: 'clip',
  neverTrained: 'forbid',
  phrasing: 'trained',
};

it('draws the same video for the same seed and index, and renders its frames', async () => {
  const [video, again] = [new WorldVideo(OPTIONS), new WorldVideo(OPTIONS)];
  const other = new WorldVideo({ ...OPTIONS, index: 1 });
  expect(again.questions).toEqual(video.questions);
  expect(other.questions).not.toEqual(video.questions);
  expect(video.frameCount).toBe(video.framesAtOneASecond * video.fps);
  const last = video.frameCount - 1;
  const frame = await video.renderFrame(last);
  expect(frame.length).toBe(video.width * video.height * 3);
  expect(await again.renderFrame(last)).toEqual(frame);
});

it('gives its first frame as a PNG', async () => {
  const video = new WorldVideo({ ...OPTIONS, kind: 'image' });
  expect([video.frameCount, video.framesAtOneASecond, video.srt]).toEqual([1, 1, '']);
  const { data, width, height } = await decodeImage(await video.toPng());
  expect([width, height]).toEqual([video.width, video.height]);
  expect(data).toEqual(await video.renderFrame(0));
});

it.each([
  [{ seed: -1 }, /seed is -1/],
  [{ index: 0.5 }, /index is 0.5/],
  [{ kind: 'film' as 'clip' }, /kind is "film", but must be one of image, clip, multi, long/],
  [{ neverTrained: 'no' as 'only' }, /neverTrained is "no"/],
  [{ phrasing: 'no' as 'mixed' }, /phrasing is "no"/],
])('refuses %o', (options, message) => {
  expect(() => callNative(() => new WorldVideo({ ...OPTIONS, ...options }))).toThrow(message);
});

it('refuses a frame behind the last', async () => {
  const video = new WorldVideo(OPTIONS);
  const rendered = callNativeAsync(() => video.renderFrame(video.frameCount));
  await expect(rendered).rejects.toMatchObject({ code: 'INVALID_ARGUMENT' });
});
