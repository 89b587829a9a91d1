// Streams with the unmodified `openai` client and tells what it read, as one JSON object.
//
// GATE, KEY and MODEL say whom to ask for what; with WANT the requests have a `Provenance-Want`.

import OpenAI from 'openai';

const { GATE, KEY, MODEL, PROMPT, WANT } = process.env;
const client = new OpenAI({
  baseURL: `${GATE}/v1`,
  apiKey: KEY,
  maxRetries: 0,
  timeout: 20_000,
  defaultHeaders: WANT ? { 'provenance-want': WANT } : {},
});

async function all(stream) {
  const found = [];
  for await (const part of stream) found.push(part);
  return found;
}

const messages = [{ role: 'user', content: PROMPT }];
const told = { chat: await all(await client.chat.completions.create({ model: MODEL, messages, max_tokens: 5, stream: true })) };

// What only a real server can be asked for.
if (process.env.REAL) {
  // The helper that puts an answer together from its chunks, and fails where one of them is missing.
  const helper = client.chat.completions.stream({ model: MODEL, messages, max_tokens: 5, stream: true });
  told.pieces = [];
  helper.on('content', (piece) => told.pieces.push(piece));
  told.final = await helper.finalContent();
  told.completions = await all(await client.completions.create({ model: MODEL, prompt: PROMPT, max_tokens: 5, stream: true }));
  told.responses = await all(await client.responses.create({ model: MODEL, input: PROMPT, max_output_tokens: 5, stream: true }));
}

console.log(JSON.stringify(told));
