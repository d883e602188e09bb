// Vercel's AI SDK with its provider for compatible servers: `node ai_sdk_compatible.mjs URL MODEL`.
import assert from "node:assert/strict";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { APICallError, generateImage } from "ai";

const [url, name] = process.argv.slice(2);
const provider = createOpenAICompatible({
  name: "safelight", baseURL: `${url}/v1`, apiKey: "unused",
});
const model = provider.imageModel(name);
const isPng = (one) => Buffer.from(one.uint8Array).subarray(1, 4).toString() === "PNG";

const seeded = { safelight: { seed: 5, num_inference_steps: 2 } };
const request = { model, prompt: "a cat", n: 2, size: "64x64", providerOptions: seeded };
const { images } = await generateImage(request);
assert.ok(images.length === 2 && images.every(isPng));
const again = await generateImage(request);
assert.deepEqual(again.images.map((one) => one.base64), images.map((one) => one.base64));
console.log("generateImage with providerOptions");

const edited = await generateImage({
  model, size: "64x64", prompt: { text: "a dog", images: images.map((one) => one.uint8Array) },
});
assert.ok(isPng(edited.image));
console.log("generateImage with pictures");

await assert.rejects(
  generateImage({ model: provider.imageModel("none"), prompt: "a cat", maxRetries: 0 }),
  (failure) => APICallError.isInstance(failure) && /'none' does not exist/.test(failure.message),
);
console.log("errors");
