"use strict";
// What is asked stands in the address (?q=words or ?row=12), so that a link shows what its sender saw. An uploaded picture cannot stand there: it is
// kept as long as the page is. All text is set as text, never as HTML.
(() => {
  const element = (id) => document.getElementById(id);
  const [form, words, file, told, results, more, drop] = ["search", "words", "file", "told", "results", "more", "drop"].map(element);
  const facts = Object.fromEntries(Object.entries(document.body.dataset).map(([name, value]) => [name, Number(value)]));
  const uploads = [];
  const atFirst = told.textContent;
  let running = new AbortController();
  let k = facts.k;
  let isFocusWanted = false;

  function current() {
    const address = new URLSearchParams(location.search);
    const upload = uploads[history.state?.upload];
    if (upload) return { upload };
    if (address.has("row")) return { row: address.get("row") };
    return address.get("q")?.trim() ? { text: address.get("q") } : {};
  }

  function go(address, state = null) {
    k = facts.k;
    history.pushState(state, "", address);
    search();
  }

  function say(text, isWrong = false) {
    told.textContent = text;
    told.classList.toggle("wrong", isWrong);
  }

  function request({ text, row, upload }, signal) {
    if (!upload) return fetch(`search?${new URLSearchParams({ ...(text === undefined ? { row } : { text }), k })}`, { signal });
    const body = new FormData();
    body.append("image", upload);
    return fetch(`search?k=${k}`, { method: "POST", body, signal });
  }

  async function search() {
    running.abort();
    const asked = current();
    showAsked(asked);
    more.hidden = true;
    if (!Object.keys(asked).length) {
      results.replaceChildren();
      return say(atFirst);
    }
    const { signal } = (running = new AbortController());
    results.classList.add("stale");
    say("Searching\u2026");
    try {
      const answer = await request(asked, signal);
      const found = await answer.json();
      if (!answer.ok) throw new Error(found.error);
      showFound(found, asked);
    } catch (error) {
      if (signal.aborted) return;
      results.replaceChildren();
      say(error instanceof TypeError ? "The server does not answer. Is it still running?" : error.message, true);
    } finally {
      if (!signal.aborted) results.classList.remove("stale");
    }
  }

  function showAsked({ text, row, upload }) {
    const picture = element("asked-picture");
    if (picture.src.startsWith("blob:")) URL.revokeObjectURL(picture.src);
    if (document.activeElement !== words || text !== undefined) words.value = text ?? "";
    element("asked").hidden = text !== undefined || (row === undefined && !upload);
    document.title = text ? `${text} | Image search` : "Image search";
    if (upload) picture.src = URL.createObjectURL(upload);
    else if (row !== undefined) picture.src = `image/${encodeURIComponent(row)}`;
    element("asked-name").textContent = upload ? `Pictures like ${upload.name || "the pasted one"}` : `Pictures like number ${row}`;
  }

  function showFound({ results: hits, encode_ms, find_ms, rerank_ms, notes }, asked) {
    const ms = (value) => (value < 10 ? value.toFixed(1) : value.toFixed(0));
    const parts = [`encoding ${ms(encode_ms)}`, `finding ${ms(find_ms)}`, ...(rerank_ms ? [`re-ranking ${ms(rerank_ms)}`] : [])];
    const count = hits.length === 1 ? "1 picture" : `${hits.length} pictures`;
    const summary = hits.length ? `${count} in ${ms(encode_ms + find_ms + rerank_ms)} ms (${parts.join(", ")})` : "No picture is left in this index.";
    say([summary, ...notes].join("; "));
    const best = Math.max(...hits.map((hit) => hit.score), 1e-9);
    results.replaceChildren(...hits.map((hit) => card(hit, Math.max(0, hit.score / best))));
    more.hidden = hits.length < k || k >= facts.maxK;
    const itself = hits.find(({ row }) => String(row) === asked.row);
    if (itself) element("asked-name").textContent = `Pictures like ${itself.name}`;
    // What was clicked is gone: the keyboard goes on from the first picture, not from the top of the page.
    if (isFocusWanted) results.querySelector("a.picture")?.focus({ preventScroll: true });
    isFocusWanted = false;
  }

  function card({ row, name, score, reranked }, share) {
    const item = document.createElement("li");
    const link = add(item, "a", "picture");
    link.href = `?row=${row}`;
    link.title = `Pictures like ${name}`;
    const picture = add(link, "img");
    picture.alt = name;
    picture.loading = "lazy";
    picture.addEventListener("error", () => link.replaceChildren("this picture is gone"), { once: true });
    picture.src = `image/${row}`;
    add(add(item, "div", "score"), "span").style.setProperty("--share", share.toFixed(3));
    const label = add(item, "p", "name");
    label.dir = "auto";
    const original = add(label, "a");
    Object.assign(original, { href: `image/${row}?size=original`, target: "_blank", rel: "noopener", title: name, textContent: name });
    add(item, "p", "numbers").textContent = reranked === null ? score.toFixed(3) : `${reranked.toFixed(2)} re-ranked, ${score.toFixed(3)}`;
    return item;
  }

  function add(parent, tag, name = "") {
    const node = parent.appendChild(document.createElement(tag));
    if (name) node.className = name;
    return node;
  }

  function searchByPicture(picture) {
    if (!picture) return;
    if (picture.type && !picture.type.startsWith("image/")) return say(`${picture.name} is not a picture.`, true);
    if (picture.size > facts.maxUploadBytes) {
      const [size, limit] = [picture.size, facts.maxUploadBytes].map((bytes) => (bytes / 2 ** 20).toFixed(1));
      return say(`${picture.name} has ${size} MiB; at most ${limit} MiB can be sent.`, true);
    }
    go(location.pathname, { upload: uploads.push(picture) - 1 });
  }

  form.addEventListener("submit", (event) => {
    event.preventDefault();
    if (words.value.trim()) go(`?${new URLSearchParams({ q: words.value })}`);
  });
  file.addEventListener("change", () => {
    searchByPicture(file.files[0]);
    file.value = "";
  });
  element("asked-picture").addEventListener("error", () => (element("asked").hidden = true));
  results.addEventListener("click", (event) => {
    const link = event.target.closest("a.picture");
    if (!link || event.ctrlKey || event.metaKey || event.shiftKey) return;
    event.preventDefault();
    scrollTo(0, 0);
    isFocusWanted = true;
    go(link.getAttribute("href"));
  });
  more.addEventListener("click", () => {
    k = Math.min(2 * k, facts.maxK);
    search();
  });
  document.addEventListener("paste", (event) => searchByPicture(event.clipboardData.files[0]));
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const links = [...results.querySelectorAll("a.picture")];
    const place = links.indexOf(document.activeElement);
    if (event.key === "/" && document.activeElement !== words) {
      words.focus();
      words.select();
    } else if (event.key === "ArrowDown" && document.activeElement === words && links.length) links[0].focus();
    else if (place >= 0 && step(event.key, links)) links[Math.min(Math.max(place + step(event.key, links), 0), links.length - 1)].focus();
    else return;
    event.preventDefault();
  });

  function step(key, links) {
    const columns = links.filter((link) => link.offsetTop === links[0].offsetTop).length;
    return { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -columns, ArrowDown: columns }[key] ?? 0;
  }

  const hasFiles = (event) => event.dataTransfer?.types.includes("Files");
  document.addEventListener("dragover", (event) => {
    if (!hasFiles(event)) return;
    event.preventDefault();
    drop.hidden = false;
  });
  document.addEventListener("dragleave", (event) => {
    if (!event.relatedTarget) drop.hidden = true;
  });
  document.addEventListener("drop", (event) => {
    if (!hasFiles(event)) return;
    event.preventDefault();
    drop.hidden = true;
    searchByPicture(event.dataTransfer.files[0]);
  });
  addEventListener("popstate", () => {
    k = facts.k;
    search();
  });
  search();
  if (!Object.keys(current()).length) words.focus();
})();
