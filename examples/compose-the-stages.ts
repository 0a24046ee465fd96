// The four stages by themselves: `node examples/compose-the-stages.ts [video] [model folder] [question]`.
import { fileURLToPath } from 'node:url';
import { conversation, LanguageModel } from '@llamavid/llm';
import { TokenGenerator } from '@llamavid/tokens';
import { openMedia } from '@llamavid/video';
import { VisualEncoder, VisualFeatures } from '@llamavid/vision';

const path = (name: string) => fileURLToPath(new URL(`../${name}`, import.meta.url));
const [
  video = path('fixtures/world/media/clip-004.mp4'),
  folder = path('packages/tiny/model'),
  question = 'describe the video.',
] = process.argv.slice(2);

await using media = await openMedia(video);
using encoder = await VisualEncoder.load(folder);

// Once per video: frames become pixels, pixels become features.
const parts: VisualFeatures[] = [];
for await (const { pixels } of media.pixels(encoder.preprocessing)) {
  parts.push(await encoder.encode(pixels));
  pixels.close();
}
using features = await VisualFeatures.concatenate(parts);
for (const part of parts) part.close();
console.log(`${features.frameCount} frames → visual features ${features.shape.join(' × ')}`);

// Once per question: features become context and content tokens.
using generator = await TokenGenerator.load(folder);
using tokens = await generator.generate(features, question);
console.log(`“${question}” → visual tokens ${tokens.shape.join(' × ')}`);

using model = await LanguageModel.load(folder);
using session = model.createSession();
const template = conversation(model.conversation ?? 'vicuna_v1');
const prompt = template.render([{ question: `${model.imagePlaceholder}\n${question}` }]);
const answer = session.generate(prompt, { visualTokens: [tokens], stop: template.stop, maxNewTokens: 32 });
for await (const text of answer) process.stdout.write(text);
console.log();
