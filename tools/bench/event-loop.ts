// Measures how long the event loop of Node is held up while a video is opened, encoded and asked about:
// `pnpm bench:loop [model folder] [video]`. The bound that the project sets itself is 20 ms.
import { cpus } from 'node:os';
import { monitorEventLoopDelay } from 'node:perf_hooks';
import { fileURLToPath } from 'node:url';
import { LlamaVid } from '../../packages/pipeline/dist/index.js';

const fixture = (path: string) => fileURLToPath(new URL(`../../fixtures/${path}`, import.meta.url));
const [folder = fixture('random-model'), video = fixture('clips/phone_vfr_1080p_bt709.mp4')] =
  process.argv.slice(2);

await using model = await LlamaVid.load(folder);
const ask = async () => {
  await using clip = await model.open(video, { fps: 30, store: 'none' });
  await model.ask(clip, 'What happens?', { maxNewTokens: 200 }).result();
};
await ask(); // Code that runs for the first time is compiled; that is not the model's.

const delay = monitorEventLoopDelay({ resolution: 1 });
delay.enable();
for (let run = 0; run < 10; run += 1) await ask();
delay.disable();

const ms = (nanoseconds: number) => `${(nanoseconds / 1e6).toFixed(1)} ms`;
console.log(`${cpus()[0]?.model ?? 'unknown CPU'}, ${cpus().length} cores, Node ${process.version}`);
console.log(`median ${ms(delay.percentile(50))}, 99 % ${ms(delay.percentile(99))}, longest ${ms(delay.max)}`);
