// Vercel's AI SDK: `node ai_sdk.mjs URL MODEL`.
import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { createOpenAI } from "@ai-sdk/openai";
import { APICallError, generateImage } from "ai";

globalThis.AI_SDK_LOG_WARNINGS = false;
const [url, name] = process.argv.slice(2);
const provider = createOpenAI({ baseURL: `${url}/v1`, apiKey: "unused" });
const model = provider.image(name);
const isPng = (one) => Buffer.from(one.uint8Array).subarray(1, 4).toString() === "PNG";

const { images, warnings } = await generateImage({
  model, prompt: "a cat", n: 2, size: "1024x1024", seed: 5,
  providerOptions: { openai: { quality: "hd", style: "vivid" } },
});
assert.ok(images.length === 2 && images.every(isPng));
assert.ok(warnings.length && warnings.every((one) => one.feature === "seed")); // not sent
console.log("generateImage");

const pictures = images.map((one) => one.uint8Array);
for (const prompt of [
  { text: "a dog", images: pictures.slice(1) },
  { text: "a dog", images: pictures },
  { text: "a dog", images: [readFileSync("input.png")], mask: readFileSync("mask.png") },
]) {
  assert.ok(isPng((await generateImage({ model, prompt, size: "64x64" })).image));
}
console.log("generateImage with a picture, with two, with a mask");

await assert.rejects(
  generateImage({ model, prompt: "a cat", size: "1x1", maxRetries: 0 }),
  (failure) => APICallError.isInstance(failure) && failure.data.error.param === "size",
);
await assert.rejects(
  generateImage({ model: provider.image("none"), prompt: "a cat", maxRetries: 0 }),
  (failure) => APICallError.isInstance(failure) && /'none' does not exist/.test(failure.message),
);
console.log("errors");
