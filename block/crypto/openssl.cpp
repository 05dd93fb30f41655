#include "block/crypto/openssl.h"

#include "block/base/library.h"

namespace platter::crypto {
namespace {

Result<OpenSsl> load_openssl() {
  const auto library = SharedLibrary::load("libcrypto.so.3", "libssl3");
  PLATTER_TRY(library);
  OpenSsl api;
  Result<void> found;
  const auto find = [&](const char* name, auto& function) {
    if (found) found = library->find(name, function);
  };
  find("OPENSSL_init_crypto", api.OPENSSL_init_crypto);
  find("CRYPTO_memcmp", api.CRYPTO_memcmp);
  find("EVP_CIPHER_fetch", api.EVP_CIPHER_fetch);
  find("EVP_CIPHER_free", api.EVP_CIPHER_free);
  find("EVP_CIPHER_get_key_length", api.EVP_CIPHER_get_key_length);
  find("EVP_CIPHER_CTX_new", api.EVP_CIPHER_CTX_new);
  find("EVP_CIPHER_CTX_free", api.EVP_CIPHER_CTX_free);
  find("EVP_CIPHER_CTX_set_padding", api.EVP_CIPHER_CTX_set_padding);
  find("EVP_CipherInit_ex2", api.EVP_CipherInit_ex2);
  find("EVP_CipherUpdate", api.EVP_CipherUpdate);
  find("EVP_MD_fetch", api.EVP_MD_fetch);
  find("EVP_MD_free", api.EVP_MD_free);
  find("EVP_MD_get_size", api.EVP_MD_get_size);
  find("EVP_MD_CTX_new", api.EVP_MD_CTX_new);
  find("EVP_MD_CTX_free", api.EVP_MD_CTX_free);
  find("EVP_DigestInit_ex", api.EVP_DigestInit_ex);
  find("EVP_DigestUpdate", api.EVP_DigestUpdate);
  find("EVP_DigestFinal_ex", api.EVP_DigestFinal_ex);
  find("PKCS5_PBKDF2_HMAC", api.PKCS5_PBKDF2_HMAC);
  find("RAND_bytes", api.RAND_bytes);
  PLATTER_TRY(found);
  // No clearing up at exit: threads of worker pools may end later, and what the library keeps for
  // each of them is then still theirs to free.
  if (api.OPENSSL_init_crypto(OPENSSL_INIT_NO_ATEXIT, nullptr) != 1)
    return fail(EIO, "libcrypto.so.3 does not start");
  return api;
}

}  // namespace

Result<const OpenSsl*> openssl() {
  static const Result<OpenSsl> loaded = load_openssl();
  PLATTER_TRY(loaded);
  return &*loaded;
}

}  // namespace platter::crypto
