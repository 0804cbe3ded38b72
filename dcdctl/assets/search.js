"use strict";
// The query is in the address (?q=words or ?row=12, and where=CONDITION for each filter), so that a link shows what its sender saw. An uploaded
// image cannot be in the address; it is kept as long as the page is open. All text is set as text, never as HTML.
(() => {
  const element = (id) => document.getElementById(id);
  const [form, words, file, status, results, more, drop] = ["search", "words", "file", "status", "results", "more", "drop"].map(element);
  const [queryImage, queryThumbnail, queryName] = [element("query-image"), ...element("query-image").children];
  const limits = Object.fromEntries(Object.entries(document.body.dataset).map(([name, value]) => [name, Number(value)]));
  const facets = element("facets");
  const [examples, heading] = [element("examples"), document.querySelector("h1").textContent];
  // Only for an index with the words of captions and file names.
  const hybrid = element("hybrid");
  const sample = JSON.parse(results.dataset.sample);
  const uploads = [];
  const instructions = status.textContent;
  let running = new AbortController();
  let k = limits.k;
  let isFocusPending = false;

  function current() {
    const address = new URLSearchParams(location.search);
    const upload = uploads[history.state?.upload];
    if (upload) return { upload };
    if (address.has("row")) return { row: address.get("row") };
    return address.get("q")?.trim() ? { text: address.get("q"), ...(address.has("hybrid") ? { hybrid: true } : {}) } : {};
  }

  const conditions = () => new URLSearchParams(location.search).getAll("where");

  // Go to a query; the conditions stay unless others are given.
  function go(query, state = null, where = conditions()) {
    k = limits.k;
    const address = new URLSearchParams(query);
    where.forEach((condition) => address.append("where", condition));
    history.pushState(state, "", `?${address}`);
    search();
  }

  function say(text, isWrong = false) {
    status.textContent = text;
    status.classList.toggle("wrong", isWrong);
  }

  function request({ upload, ...query }, signal) {
    const address = new URLSearchParams({ ...query, k });
    conditions().forEach((condition) => address.append("where", condition));
    if (!upload) return fetch(`search?${address}`, { signal });
    const body = new FormData();
    body.append("image", upload);
    return fetch(`search?${address}`, { method: "POST", body, signal });
  }

  async function search() {
    running.abort();
    const query = current();
    showQuery(query);
    showConditions();
    more.hidden = true;
    if (!Object.keys(query).length) {
      results.replaceChildren(...sample.map((image) => card(image)));
      return say(conditions().length ? "The filter applies to the next search. Type what an image shows, or drop an image here." : instructions);
    }
    const { signal } = (running = new AbortController());
    results.classList.add("stale");
    say("Searching\u2026");
    try {
      const response = await request(query, signal);
      const answer = await response.json();
      if (!response.ok) throw new Error(answer.error);
      showAnswer(answer, query);
    } catch (error) {
      if (signal.aborted) return;
      results.replaceChildren();
      say(error instanceof TypeError ? "The server does not answer. Is it still running?" : error.message, true);
    } finally {
      if (!signal.aborted) results.classList.remove("stale");
    }
  }

  function showQuery({ text, row, upload, hybrid: isHybrid }) {
    if (hybrid && text !== undefined) hybrid.checked = Boolean(isHybrid);
    if (queryThumbnail.src.startsWith("blob:")) URL.revokeObjectURL(queryThumbnail.src);
    if (document.activeElement !== words || text !== undefined) words.value = text ?? "";
    queryImage.hidden = text !== undefined || (row === undefined && !upload);
    document.title = text ? `${text} | ${heading}` : heading;
    examples.hidden = text !== undefined || row !== undefined || Boolean(upload);
    if (upload) queryThumbnail.src = URL.createObjectURL(upload);
    else if (row !== undefined) queryThumbnail.src = `image/${encodeURIComponent(row)}`;
    queryName.textContent = upload ? `Images like ${upload.name || "the pasted image"}` : `Images like number ${row}`;
  }

  function showAnswer({ results: hits, encode_ms, find_ms, rerank_ms, notes, bars, weak, captions }, query) {
    const ms = (value) => (value < 10 ? value.toFixed(1) : value.toFixed(0));
    const parts = [`encoding ${ms(encode_ms)}`, `finding ${ms(find_ms)}`, ...(rerank_ms ? [`re-ranking ${ms(rerank_ms)}`] : [])];
    const count = hits.length === 1 ? "1 image" : `${hits.length} images`;
    const empty = conditions().length ? [] : ["This index has no images left."];
    const summary = hits.length ? [`${count} in ${ms(encode_ms + find_ms + rerank_ms)} ms (${parts.join(", ")})`] : empty;
    say([...(weak ? [notes.shift()] : []), ...summary, ...notes].join("; "));
    results.classList.toggle("weak", weak);
    results.classList.toggle("by-text", query.text !== undefined);
    results.replaceChildren(...hits.map((hit, position) => card({ ...hit, caption: captions[position] }, bars[position])));
    more.hidden = hits.length < k || k >= limits.maxK;
    const itself = hits.find(({ row }) => String(row) === query.row);
    if (itself) queryName.textContent = `Images like ${itself.name}`;
    // The clicked image is gone: the keyboard continues from the first image, not from the top of the page.
    if (isFocusPending) results.querySelector("a.image")?.focus({ preventScroll: true });
    isFocusPending = false;
  }

  // The ends of a name tell files apart: IMG_2041...(copy 2).jpg.
  function shortened(name) {
    const letters = [...name];
    return letters.length <= 22 ? name : `${letters.slice(0, 9).join("")}\u2026${letters.slice(-12).join("")}`;
  }

  // An image of the sample has no score.
  function card({ row, name, caption, score, reranked, bm25, columns = {} }, share) {
    const item = document.createElement("li");
    const link = add(item, "a", "image");
    link.href = `?${new URLSearchParams([["row", row], ...conditions().map((condition) => ["where", condition])])}`;
    link.dataset.row = row;
    link.title = `Images like ${name}`;
    const image = add(link, "img");
    image.alt = name;
    image.loading = "lazy";
    image.addEventListener("error", () => link.replaceChildren("this image is gone"), { once: true });
    image.src = `image/${row}`;
    if (share !== undefined) add(add(item, "div", "score"), "span").style.setProperty("--share", share.toFixed(3));
    const label = add(item, "p", "name");
    label.dir = "auto";
    const original = add(label, "a");
    Object.assign(original, { href: `image/${row}?size=original`, target: "_blank", rel: "noopener", title: name, textContent: shortened(name) });
    if (caption) Object.assign(add(item, "p", "caption"), { textContent: caption, title: caption, dir: "auto" });
    const numbers = score === undefined ? [] : [...(reranked === null ? [] : [`${reranked.toFixed(2)} re-ranked`]), score.toFixed(3)];
    if (bm25) numbers.push(`words ${bm25.toFixed(2)}`);
    if (numbers.length) add(item, "p", "numbers").textContent = numbers.join(", ");
    const values = Object.entries(columns).filter(([, value]) => value !== null);
    if (values.length) {
      const line = add(item, "p", "columns");
      line.title = line.textContent = values.map(([column, value]) => `${column} ${shownValue(value)}`).join(", ");
      line.dir = "auto";
    }
    return item;
  }

  function add(parent, tag, name = "") {
    const node = parent.appendChild(document.createElement(tag));
    if (name) node.className = name;
    return node;
  }

  function shownValue(value) {
    if (typeof value === "boolean") return value ? "yes" : "no";
    return typeof value === "string" ? value.replace(/^(\d{4}-\d\d-\d\d)T(\d\d:\d\d)(:00$|.*)/, "$1 $2") : String(value);
  }

  // The server writes and quotes the condition of a choice. A range has a number or a date of the browser's own field, so nothing to quote.
  const isDate = ({ type }) => type.startsWith("date");
  const bound = (column, sign, text) => `${column.quoted} ${sign} ${isDate(column) ? `'${text}'` : text}`;
  const endOfDay = ({ type }, text) => (type === "date and time" ? `${text}T23:59:59.999999` : text);

  // Any part of a text; % and _ stand for themselves.
  const quotedPart = (text) => text.replace(/[\\%_]/g, "\\$&").replaceAll("'", "''");
  const unquotedPart = (text) => text.replaceAll("''", "'").replace(/\\(.)/g, "$1");

  function addFacet(column, place) {
    // More than two would push the images out of a phone's screen.
    const parent = place < 2 ? facets : (facets.querySelector("details") ?? add(facets, "details"));
    if (parent !== facets && !parent.children.length) add(parent, "summary").textContent = "More filters";
    const label = add(parent, "label");
    add(label, "span").textContent = column.name;
    const fields = column.facet === "values" ? [add(label, "select")] : Array.from({ length: column.facet === "part" ? 1 : 2 }, () => add(label, "input"));
    if (column.facet === "values") {
      fields[0].append(new Option("any", ""));
      column.values.forEach(({ value, images, condition }) => fields[0].append(new Option(`${shortened(shownValue(value))} (${images})`, condition)));
    } else if (column.facet === "part") {
      Object.assign(fields[0], { type: "text", title: `a part of ${column.name}` });
      Object.assign(fields[0].dataset, { start: `${column.quoted} like '%`, end: "%'" });
    } else {
      fields.forEach((field, end) => {
        const limit = String([column.low, column.high][end]);
        Object.assign(field, { type: isDate(column) ? "date" : "number", step: "any", placeholder: limit, title: `${["from", "to"][end]} ${limit}` });
        field.setAttribute("aria-label", `${column.name} ${["from", "to"][end]}`);
        field.dataset.start = bound(column, [">=", "<="][end], "").replace(/''$/, "'");
        field.dataset.end = isDate(column) ? "'" : "";
      });
    }
    fields.forEach((field, end) => {
      field.condition = () => {
        if (column.facet === "values" || !field.value) return field.value;
        if (column.facet === "part") return field.dataset.start + quotedPart(field.value) + field.dataset.end;
        return field.dataset.start + (end ? endOfDay(column, field.value) : field.value) + field.dataset.end;
      };
      field.addEventListener("change", () => {
        const others = conditions().filter((condition) => condition !== field.shown);
        go(queryOf(), history.state, [...others, field.condition()].filter(Boolean));
      });
    });
  }

  function queryOf() {
    const address = new URLSearchParams(location.search);
    address.delete("where");
    return address;
  }

  // The fields show the conditions of the address; others, such as those of a link, get a button that removes them.
  function showConditions() {
    const where = conditions();
    const left = new Set(where);
    facets.querySelectorAll("select, input").forEach((field) => {
      const isShown = (condition) =>
        field.tagName === "SELECT" ? [...field.options].some(({ value }) => value === condition) : condition.startsWith(field.dataset.start);
      field.shown = where.find((condition) => condition && isShown(condition)) ?? "";
      const value = field.shown.slice(field.dataset.start?.length ?? 0);
      if (field.type === "text") field.value = unquotedPart(value.slice(0, -2));
      else field.value = field.tagName === "SELECT" ? value : value.replace(/(T.*)?'?$/, "");
      left.delete(field.shown);
    });
    facets.querySelectorAll("button").forEach((button) => button.remove());
    left.forEach((condition) => {
      const button = add(facets, "button", "condition");
      Object.assign(button, { type: "button", textContent: `${condition} \u00d7`, title: "Remove this condition" });
      button.addEventListener("click", () => go(queryOf(), history.state, conditions().filter((other) => other !== condition)));
    });
    facets.hidden = !facets.children.length;
  }

  async function loadFacets() {
    try {
      const response = await fetch("columns");
      if (response.ok) (await response.json()).filter(({ facet }) => facet).sort((a, b) => a.distinct - b.distinct).forEach(addFacet);
    } catch {
      return; // the search itself says that the server does not answer
    }
    showConditions();
  }

  function searchByImage(image) {
    if (!image) return;
    if (image.type && !image.type.startsWith("image/")) return say(`${image.name} is not an image.`, true);
    if (image.size > limits.maxUploadBytes) {
      const [size, limit] = [image.size, limits.maxUploadBytes].map((bytes) => (bytes / 2 ** 20).toFixed(1));
      return say(`${image.name} has ${size} MiB; at most ${limit} MiB can be sent.`, true);
    }
    go({}, { upload: uploads.push(image) - 1 });
  }

  form.addEventListener("submit", (event) => {
    event.preventDefault();
    if (words.value.trim()) go({ q: words.value, ...(hybrid?.checked ? { hybrid: true } : {}) });
  });
  hybrid?.addEventListener("change", () => form.requestSubmit());
  file.addEventListener("change", () => {
    searchByImage(file.files[0]);
    file.value = "";
  });
  queryThumbnail.addEventListener("error", () => (queryImage.hidden = true));
  results.addEventListener("click", (event) => {
    const link = event.target.closest("a.image");
    if (!link || event.ctrlKey || event.metaKey || event.shiftKey) return;
    event.preventDefault();
    scrollTo(0, 0);
    isFocusPending = true;
    go({ row: link.dataset.row });
  });
  more.addEventListener("click", () => {
    k = Math.min(2 * k, limits.maxK);
    search();
  });
  document.addEventListener("paste", (event) => searchByImage(event.clipboardData.files[0]));
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const links = [...results.querySelectorAll("a.image")];
    const position = links.indexOf(document.activeElement);
    if (event.key === "/" && document.activeElement !== words) {
      words.focus();
      words.select();
    } else if (event.key === "ArrowDown" && document.activeElement === words && links.length) links[0].focus();
    else if (position >= 0 && step(event.key, links)) links[Math.min(Math.max(position + step(event.key, links), 0), links.length - 1)].focus();
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
    searchByImage(event.dataTransfer.files[0]);
  });
  addEventListener("popstate", () => {
    k = limits.k;
    search();
  });
  search();
  loadFacets();
  if (!Object.keys(current()).length) words.focus();
})();
