// The four stages by themselves: `node examples/compose-the-stages.ts [video] [model folder]`.
import { fileURLToPath } from 'node:url';
import { conversation, LanguageModel } from '@llamavid/llm';
import { TokenGenerator } from '@llamavid/tokens';
import { openMedia } from '@llamavid/video';
import { VisualEncoder, VisualFeatures } from '@llamavid/vision';

const fixture = (path: string) => fileURLToPath(new URL(`../fixtures/${path}`, import.meta.url));
const [video = fixture('clips/bbb_vp9.webm'), folder = fixture('random-model')] = process.argv.slice(2);

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
const question = 'What is the animal doing?';
using generator = await TokenGenerator.load(folder);
using tokens = await generator.generate(features, question);
console.log(`“${question}” → visual tokens ${tokens.shape.join(' × ')}`);

using model = await LanguageModel.load(folder);
using session = model.createSession();
const prompt = conversation('vicuna_v1').render([{ question: `${model.imagePlaceholder}\n${question}` }]);
for await (const text of session.generate(prompt, { visualTokens: [tokens], maxNewTokens: 16 }))
  process.stdout.write(text);
console.log();
