// Times new tokens through `@llamavid/llm`: `generate.ts <@llamavid/llm> <file.gguf> <tokens> <threads>`.
import process from 'node:process';

const [library, path, count] = process.argv.slice(2) as [string, string, string];
const { LanguageModel }: typeof import('../../../packages/llm/dist/index.js') = await import(library);

using model = await LanguageModel.load(path, { device: 'cpu' });
using session = model.createSession();
for (const maxNewTokens of [16, Number(count)]) {
  const { timings, tokenIds } = await session.generate('a b c d', { maxNewTokens }).result();
  if (maxNewTokens === 16) continue;
  // The prompt's pass gives the first one.
  console.log(JSON.stringify({ seconds: timings.decodeMs / 1000, tokens: tokenIds.length - 1 }));
}
