// Loads the scripts of the page, or says why they are missing.
//
// During an upgrade, replicas of two versions serve behind one address. A replica has only the files of its own version,
// so this script is the only one that the page of another version may get. Keep it working with both.

const MESSAGE =
  "The page cannot be loaded. Replicas of two versions run behind this address, or the connection was lost. " +
  "Reload the page when all replicas run the same version: “controller replicas” lists them.";

const version = document.querySelector("meta[name=page-version]").content;
try {
  // A style sheet that was not found is an empty one. This script runs after it was loaded.
  if (!document.querySelector("link[rel=stylesheet]").sheet?.cssRules.length) throw new Error("The style sheet is missing.");
  await import(`./${version}/main.js`);
} catch (error) {
  const [navigation] = performance.getEntriesByType("navigation");
  if (navigation && navigation.type !== "reload") {
    location.reload(); // once: another replica may answer
  } else {
    console.error(error);
    const text = document.createElement("p");
    text.setAttribute("role", "alert");
    text.textContent = MESSAGE;
    const main = document.createElement("main");
    main.append(text);
    document.getElementById("page").replaceChildren(main);
  }
}
