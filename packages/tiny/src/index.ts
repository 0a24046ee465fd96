import { fileURLToPath } from 'node:url';

/** The folder of the embedded model: configuration, tokenizers and weights in the published layout. */
export const modelPath: string = fileURLToPath(new URL('../model', import.meta.url));
