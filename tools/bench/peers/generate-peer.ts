// Times new tokens through `node-llama-cpp`: `generate-peer.ts <node-llama-cpp> <file.gguf> <tokens> <threads>`.
import process from 'node:process';

const [library, modelPath, count, threads] = process.argv.slice(2) as [string, string, string, string];
const { getLlama } = await import(library);

const llama = await getLlama({ gpu: false, build: 'never', maxThreads: Number(threads), logLevel: 'error' });
const model = await llama.loadModel({ modelPath });
const context = await model.createContext({ contextSize: 1024, threads: Number(threads) });
const sequence = context.getSequence();
const prompt = model.tokenize('a b c d');
for (const wanted of [16, Number(count)]) {
  await sequence.clearHistory();
  let [tokens, begun] = [0, 0];
  for await (const _token of sequence.evaluate(prompt, { temperature: 0, yieldEogToken: true })) {
    // The prompt's pass gives the first one.
    if (tokens === 0) begun = performance.now();
    tokens += 1;
    if (tokens === wanted) break;
  }
  if (wanted !== 16)
    console.log(JSON.stringify({ seconds: (performance.now() - begun) / 1000, tokens: tokens - 1 }));
}
await llama.dispose();
