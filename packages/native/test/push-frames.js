// A worker thread that pushes frames of one grey each: 0, 10, 20, ….
import { workerData } from 'node:worker_threads';
import { PixelChannel } from '../dist/index.js';

const channel = PixelChannel.open(workerData.id);
for (let frame = 0; frame < workerData.frames; frame++) {
  channel.push(new Uint8Array(8 * 8 * 3).fill(frame * 10), 8, 8, 24);
}
channel.close();
